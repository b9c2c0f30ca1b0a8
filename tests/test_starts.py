"""LoRA weights of others as a start: Flow-GRPO's layout, diffusers', and what cannot be taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import small
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training import BASE, CPU, LORA, denoiser, training
from training import run as train

from raypref.core.config import InputError
from raypref.models import adapters, checks, lora, lora_formats, network
from raypref.models.backbone import load_denoiser
from raypref.models.lora_config import FILE_NAME, LoraConfig

# As Flow-GRPO publishes for SD-3.5-Medium.
SD3_TARGETS = tuple(
    f"attn.{name}"
    for name in (
        *("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
        *("to_k", "to_out.0", "to_q", "to_v"),
    )
)
FLOW_GRPO = LoraConfig(rank=32, alpha=64, targets=SD3_TARGETS)


def fill(module: nn.Module, seed: int = 0) -> None:
    """Random values for B, which is zero at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def sd3() -> Any:
    return SD3Transformer2DModel.from_pretrained(small.path("sd3"), subfolder="transformer")


def sd3_output(transformer: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        return transformer(
            hidden_states=draw(2, 16, 8, 8),
            timestep=torch.tensor([700.0, 30.0]),
            encoder_hidden_states=draw(2, 7, 32),
            pooled_projections=draw(2, 64),
        ).sample


@pytest.fixture(scope="module")
def flow_grpo(tmp_path_factory) -> tuple[Path, Tensor]:
    """A folder as `PeftModel.save_pretrained` writes it, and what that model predicts."""
    folder = tmp_path_factory.mktemp("flow-grpo")
    config = peft.LoraConfig(r=32, lora_alpha=64, target_modules=list(SD3_TARGETS))
    model = peft.get_peft_model(sd3(), config)
    fill(model)
    model.save_pretrained(folder)
    return folder, sd3_output(model)


def unet_lora(folder: Path, *, rank: int = 4, alpha: int = 4, **settings: Any) -> Path:
    """The same for a UNet in SD-1.5's layout."""
    targets = settings.pop("target_modules", ["to_q", "to_k", "to_v", "to_out.0"])
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **settings)
    model = peft.get_peft_model(denoiser().module, config)
    fill(model)
    model.save_pretrained(folder)
    return folder


def unet_prediction(module: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 77, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        return module(x, torch.tensor([700, 30]), text).sample


# ------------------------------------------------------------------ Flow-GRPO


def test_flow_grpos_lora_is_the_start_at_full_strength(flow_grpo, tmp_path):
    folder, expected = flow_grpo
    lora_formats.bring_in(str(folder), key="k", component="transformer", folder=str(tmp_path))
    transformer = sd3()
    adapters.attach(transformer, FLOW_GRPO, names=("learner", "ref"), seed=0)
    before = sd3_output(transformer)
    lora.load_weights(
        transformer, FLOW_GRPO, folder=str(tmp_path), name="learner", component="transformer"
    )
    torch.testing.assert_close(sd3_output(transformer), expected, atol=1e-5, rtol=0)
    assert (expected - before).abs().mean() > 0.01
    # The values themselves are those of the file: alpha/rank is the same on both sides.
    theirs = load_file(folder / "adapter_model.safetensors")
    for name, value in adapters.state(transformer, "learner").items():
        assert torch.equal(value, theirs[f"base_model.model.{name}"])


def test_brought_in_it_opens_in_a_plain_pipeline(flow_grpo, tmp_path):
    folder, expected = flow_grpo
    lora_formats.bring_in(str(folder), key="k", component="transformer", folder=str(tmp_path))
    pipeline = StableDiffusion3Pipeline.from_pretrained(small.path("sd3"))
    pipeline.load_lora_weights(str(tmp_path))
    torch.testing.assert_close(sd3_output(pipeline.transformer), expected, atol=1e-5, rtol=0)


def test_its_shape_is_compared_with_the_network_before_any_weight_is_loaded(flow_grpo):
    found = lora_formats.read_lora(str(flow_grpo[0]), key="k", component="transformer")
    assert (found.rank, found.alpha) == (32, 64)

    def misfit(config: LoraConfig) -> str:
        folder = str(small.path("sd3"))
        bare = network.skeleton(folder, "transformer", kind="SD3Transformer2DModel", key="k")
        assert next(bare.parameters()).device.type == "meta"
        adapters.attach(bare, config, names=("start",), seed=0)
        return lora.misfit(found.values, adapters.state(bare, "start"), config, alpha=found.alpha)

    assert misfit(FLOW_GRPO) == ""
    assert misfit(LoraConfig(rank=4, alpha=4, targets=SD3_TARGETS)) == (
        "has rank 32, and lora.rank is 4; set lora.rank=32 lora.alpha=64"
    )
    narrow = misfit(LoraConfig(rank=32, alpha=64, targets=("attn.to_q",)))
    assert "beyond lora.targets" in narrow
    assert all(f'"{name}"' in narrow for name in SD3_TARGETS)


# ------------------------------------------------------------------ SD-1.5, both layouts


@pytest.mark.parametrize("alpha, root", [(4, False), (8, False), (8, True)])
def test_peft_layout_with_any_alpha(tmp_path, alpha, root):
    folder = unet_lora(tmp_path / "theirs", alpha=alpha, use_rslora=root)
    model = peft.PeftModel.from_pretrained(denoiser().module, folder)
    expected = unet_prediction(model)
    lora_formats.bring_in(str(folder), key="k", component="unet", folder=str(tmp_path / "run"))
    ours = denoiser().module
    adapters.attach(ours, LORA, names=("learner",), seed=0)
    lora.load_weights(ours, LORA, folder=str(tmp_path / "run"), name="learner", component="unet")
    torch.testing.assert_close(unet_prediction(ours), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("metadata", [True, False])
def test_diffusers_layout_with_and_without_the_alpha_it_may_keep(tmp_path, metadata):
    plain = StableDiffusionPipeline.from_pretrained(small.path("sd15"))
    plain.unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"]))
    fill(plain.unet)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path / "theirs",
        unet_lora_layers=get_peft_model_state_dict(plain.unet),
        **(_collate_lora_metadata({"unet": plain.unet}) if metadata else {}),
    )
    again = StableDiffusionPipeline.from_pretrained(small.path("sd15"))
    again.load_lora_weights(str(tmp_path / "theirs"))  # what the file means, says its library
    expected = unet_prediction(again.unet.double())
    found = lora_formats.read_lora(str(tmp_path / "theirs"), key="k", component="unet")
    assert found.alpha == (8 if metadata else 4)
    config = LoraConfig(rank=4, alpha=4, targets=("to_q", "to_v"))
    lora_formats.bring_in(
        str(tmp_path / "theirs"), key="k", component="unet", folder=str(tmp_path / "run")
    )
    ours = denoiser().module
    adapters.attach(ours, config, names=("learner",), seed=0)
    lora.load_weights(ours, config, folder=str(tmp_path / "run"), name="learner", component="unet")
    torch.testing.assert_close(unet_prediction(ours), expected, atol=1e-5, rtol=0)


PATTERNS: dict[str, Any] = {
    "rank_pattern": {"to_k": 2, "mid_block.attentions.0.transformer_blocks.0.attn1.to_v": 1},
    "alpha_pattern": {"to_q": 16, "to_v": 3},
}


@pytest.mark.parametrize("layout", ["peft", "diffusers"])
@pytest.mark.parametrize("root", [False, True])
def test_layers_of_several_ranks_and_alphas_are_read_as_their_library_reads_them(
    tmp_path, layout, root
):
    theirs = tmp_path / "theirs"
    if layout == "peft":
        unet_lora(theirs, alpha=8, use_rslora=root, **PATTERNS)
        expected = unet_prediction(peft.PeftModel.from_pretrained(denoiser().module, theirs))
    else:
        targets = list(LORA.targets)
        own = peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=targets, use_rslora=root, **PATTERNS
        )
        plain = StableDiffusionPipeline.from_pretrained(small.path("sd15"))
        plain.unet.add_adapter(own)
        fill(plain.unet)
        StableDiffusionPipeline.save_lora_weights(
            theirs,
            unet_lora_layers=get_peft_model_state_dict(plain.unet),
            **_collate_lora_metadata({"unet": plain.unet}),
        )
        again = StableDiffusionPipeline.from_pretrained(small.path("sd15"))
        again.load_lora_weights(str(theirs))
        expected = unet_prediction(again.unet.double())
    lora_formats.bring_in(str(theirs), key="k", component="unet", folder=str(tmp_path / "run"))
    ours = denoiser().module
    adapters.attach(ours, LORA, names=("learner",), seed=0)
    lora.load_weights(ours, LORA, folder=str(tmp_path / "run"), name="learner", component="unet")
    torch.testing.assert_close(unet_prediction(ours), expected, atol=1e-5, rtol=0)


def test_a_training_keeps_each_layers_own_rank(tmp_path):
    unet_lora(tmp_path / "theirs", **PATTERNS)
    lora_formats.bring_in(
        str(tmp_path / "theirs"), key="k", component="unet", folder=str(tmp_path / "start")
    )
    network = denoiser()
    stage = training(objective="dpo", steps=3, batch=2, lr=1e-2)
    train(stage, str(tmp_path / "out"), start=str(tmp_path / "start"), network=network)
    before = lora_formats.read_lora(str(tmp_path / "start"), key="k", component="unet").values
    after = adapters.state(network.module, "learner")
    narrow = 0
    for name, value in after.items():
        rank = next((r for part, r in PATTERNS["rank_pattern"].items() if f"{part}." in name), 4)
        narrow += rank < 4
        own, rest = value.split([rank, 4 - rank], dim=0 if "lora_A" in name else 1)
        assert not rest.any()
        assert not torch.equal(own, before[name].narrow(0 if "lora_A" in name else 1, 0, rank))
    assert narrow == 2 * (len(after) // 8 + 1)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_weights_for_text_encoders_are_left_out_of_a_start_and_told(tmp_path, caplog, layout):
    made = denoiser().module
    adapters.attach(made, LORA, names=("a",), seed=0)
    lora.save(adapters.state(made, "a"), LORA, folder=str(tmp_path), component="unet")
    text = {"diffusers": "text_encoder.x.lora_A.weight", "kohya": "lora_te1_x.lora_down.weight"}
    file = tmp_path / FILE_NAME
    tensors = load_file(file)
    if layout == "kohya":
        lora_formats.write_shared(str(tmp_path), name="shared.safetensors", component="unet")
        tensors = load_file(tmp_path / "shared.safetensors")
    save_file(tensors | {text[layout]: torch.ones(4, 2)}, file)
    own = adapters.state(made, "a")
    key = "train.stage1.start"
    with caplog.at_level("WARNING", logger="raypref"):
        checks.check_lora(BASE, LORA, str(tmp_path), key=key)
    assert f"{key}: weights for text encoders in {file} are left out (1)" in caplog.text
    run = tmp_path / "run"
    lora_formats.bring_in(str(tmp_path), key=key, component="unet", folder=str(run))
    found = lora_formats.read_lora(str(run), key=key, component="unet").values
    assert all(torch.equal(found[name], value.float()) for name, value in own.items())
    # Images of such a file are not those without its text encoders' part: there it is refused.
    with pytest.raises(InputError, match="only weights of the unet are taken"):
        lora_formats.read_lora(str(tmp_path), key=key, component="unet")


@pytest.mark.parametrize("reference", ["start", "base"])
def test_the_reference_is_the_start_or_the_base(tmp_path, reference):
    unet_lora(tmp_path / "theirs")
    lora_formats.bring_in(
        str(tmp_path / "theirs"), key="k", component="unet", folder=str(tmp_path / "start")
    )
    stage = training(objective="dpo", steps=1, batch=2, lr=1e-4, reference=reference)
    trained = denoiser()
    [first] = train(stage, str(tmp_path / "out"), start=str(tmp_path / "start"), network=trained)
    assert (first["chosen_gap"] == first["rejected_gap"] == 0.0) == (reference == "start")
    adapters.activate(trained.module, "ref")
    base = unet_prediction(load_denoiser(BASE, device=CPU).module)
    assert torch.equal(unet_prediction(trained.module), base) == (reference == "base")


def test_a_file_is_as_good_as_its_folder(tmp_path):
    folder = unet_lora(tmp_path)
    checks.check_lora(BASE, LORA, str(folder), key="train.stage1.start")
    checks.check_lora(
        BASE, LORA, str(folder / "adapter_model.safetensors"), key="train.stage1.start"
    )


# ------------------------------------------------------------------ refusals


def kohya(folder: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.ones(4, 2)}, folder / FILE_NAME)


def text_encoder_alone(folder: Path) -> None:
    tensors = {"text_encoder.x.lora_A.weight": torch.ones(4, 2)}
    save_file(tensors, folder / FILE_NAME)


def no_config(folder: Path) -> None:
    (unet_lora(folder) / "adapter_config.json").unlink()


def no_alpha(folder: Path) -> None:
    file = unet_lora(folder) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": None}))


def without_b(folder: Path) -> None:
    file = unet_lora(folder) / "adapter_model.safetensors"
    part = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora_B"
    save_file({k: v for k, v in load_file(file).items() if part not in k}, file)


def wide(folder: Path) -> None:
    tensors = load_file(unet_lora(folder) / "adapter_model.safetensors")
    wider = {k: torch.ones(4, v.shape[1] + 1) if "lora_A" in k else v for k, v in tensors.items()}
    save_file(wider, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: None, "no LoRA weights in"),
        (lambda folder: unet_lora(folder, rank=8, alpha=16), "lora.rank=8 lora.alpha=16"),
        (lambda folder: unet_lora(folder, target_modules=["to_q"]), "no weights for 12 of its"),
        (
            lambda folder: unet_lora(folder, target_modules="all-linear"),
            "layers beyond lora.targets, such as",
        ),
        (wide, "is for another model"),
        (lambda folder: unet_lora(folder, use_dora=True), "is a DoRA, which evaluate.loras alone"),
        (lambda folder: unet_lora(folder, rank_pattern={"to_q": 8}), "has rank 8, and lora.rank"),
        (without_b, "has no sound A and B for mid_block.attentions.0.transformer_blocks.0.attn1"),
        (no_config, "has no adapter_config.json beside it"),
        (no_alpha, "does not say its alpha"),
        (kohya, "has no sound lora_down, lora_up and alpha for lora_unet_x"),
        (text_encoder_alone, "holds text_encoder.x.lora_A.weight; only weights of the unet"),
        (lambda folder: (folder / FILE_NAME).write_bytes(b"x" * 99), "not a safetensors file"),
    ],
)
def test_what_cannot_be_a_start_is_refused_in_one_line(
    tmp_path, make: Callable[[Path], Any], message
):
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        checks.check_lora(BASE, LORA, str(tmp_path), key="train.stage1.start")
    assert str(caught.value).startswith("train.stage1.start: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "ref, message",
    [
        ("/nowhere/lora", "no folder or file '/nowhere/lora'"),
        ("./lora", "no folder or file './lora'"),
        ("some/lora", "of 'some/lora' is missing"),
    ],
)
def test_a_start_that_is_nowhere_is_refused(ref, message):
    with pytest.raises(InputError) as caught:
        lora_formats.read_lora(ref, key="train.stage1.start", component="unet")
    assert message in str(caught.value)


def test_a_lora_of_our_own_that_does_not_fit_names_both_ranks(tmp_path):
    made = denoiser().module
    adapters.attach(made, LORA, names=("a",), seed=0)
    lora.save(adapters.state(made, "a"), LORA, folder=str(tmp_path), component="unet")
    other = denoiser().module
    wanted = LoraConfig(rank=2, alpha=2)
    adapters.attach(other, wanted, names=("a",), seed=0)
    with pytest.raises(InputError, match=r"has rank 4, and lora.rank is 2; set lora.rank=4"):
        lora.load_weights(other, wanted, folder=str(tmp_path), name="a", component="unet")


def test_a_start_is_known_by_what_it_holds(tmp_path):
    network = denoiser()
    adapters.attach(network.module, LORA, names=("x",), seed=0)

    def written(value: float) -> str:
        with torch.no_grad():
            adapters.matrices(network.module, "x")[0].fill_(value)
        values = adapters.state(network.module, "x")
        lora.save(values, LORA, folder=str(tmp_path), component="unet")
        return lora_formats.identity(str(tmp_path), key="train.stage1.start")

    first = written(0.1)
    assert written(0.2) != first, "weights that were trained again are another start"
    assert written(0.1) == first
    assert lora_formats.identity("OWNER/REPO", key="train.stage1.start") == "OWNER/REPO"

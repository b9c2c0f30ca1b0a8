"""A frozen base in 8 or 4 bits: its weights, trainings, images, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import full
import memory
import numpy as np
import plain_quantised
import pytest
import small
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    StableDiffusionPipeline,
    ZImageTransformer2DModel,
)
from plain_comparison import compare
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training import BASES, CPU, LORAS, pairs, run, training

from raypref.align.residuals import LEARNER, POLICY, REFERENCE
from raypref.core.config import InputError, load, results_of
from raypref.evaluate.generate import BASE, Generate, GenerateConfig
from raypref.models import adapters, checks, lora
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.compiled import compile_blocks
from raypref.models.families.base import Denoiser
from raypref.models.fuse import fuse
from raypref.models.quantised import QuantisedLinear, quantise
from raypref.run.config import RunConfig
from raypref.run.memory_plan import predicted_gib
from raypref.run.model_sizes import SIZES, WIDEST
from raypref.run.outlook import outlook
from raypref.run.pipeline import Run

NF4 = pytest.param("nf4", marks=pytest.mark.bitsandbytes)
KINDS = ["int8", NF4]
PIPELINES: dict[str, Any] = {"sd15": StableDiffusionPipeline, "flux": FluxPipeline}
COMPONENTS = {"sd15": "unet", "flux": "transformer"}
GIVEN = ["source.path=/photos", "evaluate.prompts=/prompts.txt"]
DPO = training(
    objective="dpo",
    lr=1e-3,
    beta=100,
    clip=0.5,
    steps=8,
    batch=3,
    micro_batch=2,
    ema_decay=0.9,
    warmup_steps=3,
)


def base_of(family: str, kind: Any, **changes: Any) -> BackboneConfig:
    return BASES[family].model_copy(update={"quantise": kind, **changes})


@pytest.fixture(scope="session")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of a family whose weights a plain implementation has rounded, in float64."""

    @cache
    def write(family: str, kind: str) -> str:
        return plain_quantised.write(
            kind,
            PIPELINES[family],
            BASES[family].model,
            tmp_path_factory.mktemp(kind),
            component=COMPONENTS[family],
        )

    return write


def adapted(base: BackboneConfig) -> Denoiser:
    """With a learner that changes something."""
    made, own = load_denoiser(base, device=CPU), LORAS[base.family]
    adapters.attach(made.module, own, names=(LEARNER, REFERENCE, POLICY), seed=0)
    vector = adapters.vector(made.module, LEARNER).detach()
    noise = torch.randn(len(vector), generator=torch.Generator().manual_seed(1))
    adapters.fill(made.module, LEARNER, vector + 0.05 * noise)
    return made


def passed(made: Denoiser, family: str) -> list[Tensor]:
    """The learner's prediction, and the gradient of its square with respect to input and LoRA."""
    generator, shape = torch.Generator().manual_seed(5), pairs(family=family).latent_shape
    x = torch.randn(2, *shape, generator=generator).to(made.dtype).requires_grad_(True)
    timesteps = made.training_timesteps(shape)[torch.tensor([100, 700])]
    adapters.activate(made.module, LEARNER, train=True)
    predicted = made.predict(x, timesteps, pairs(family=family).embeddings[:2])
    vector = adapters.vector(made.module, LEARNER)
    return [predicted.detach(), *torch.autograd.grad(predicted.square().sum(), [x, vector])]


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_rounded_as_a_plain_implementation_rounds_it(kind: Any) -> None:
    for shape in ((96, 64), (16, 16), (40, 24), (5, 7), (3, 200)):
        layer = nn.Linear(shape[1], shape[0])
        weight = layer.weight.detach().numpy().copy()
        quantise(nn.Sequential(layer), kind, device=CPU)
        expected = plain_quantised.rounded(weight, kind)
        np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=2e-7, atol=0)
        coarsest = np.abs(weight).max() * (0.5 / 127 if kind == "int8" else 0.16)
        assert np.abs(expected - weight).max() < coarsest


def test_an_output_without_weights_stays_so() -> None:
    layer = nn.Linear(8, 3)
    nn.init.zeros_(layer.weight)
    quantise(nn.Sequential(layer), "int8", device=CPU)
    assert torch.equal(layer.weight, torch.zeros(3, 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", PIPELINES)
def test_predictions_and_gradients_are_those_of_the_rounded_network(
    family: str, kind: Any, rounded: Any
) -> None:
    own = adapted(base_of(family, kind))
    plain = adapted(BASES[family].model_copy(update={"model": rounded(family, kind)}))
    for ours, expected in zip(passed(own, family), passed(plain, family), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    without = passed(adapted(BASES[family]), family)[0]
    assert (passed(own, family)[0] - without).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", BASES)
def test_every_family_stores_its_linear_layers(family: str, kind: Any) -> None:
    whole = load_denoiser(BASES[family], device=CPU).module
    own = load_denoiser(base_of(family, kind), device=CPU)
    linear = {name for name, part in whole.named_modules() if isinstance(part, nn.Linear)}
    stored = {n for n, part in own.module.named_modules() if isinstance(part, QuantisedLinear)}
    assert stored == linear
    size = sum(whole.get_submodule(name).weight.numel() for name in linear)
    codes = sum(own.module.get_submodule(name).codes.nbytes for name in linear)
    assert codes == pytest.approx(size if kind == "int8" else size / 2, rel=0.01)
    adapters.attach(own.module, LORAS[family], names=(LEARNER,), seed=0)  # finds its layers
    assert {p.dtype for p in own.module.parameters()} == {torch.float64}


@pytest.mark.bitsandbytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_bits_are_those_of_bitsandbytes_own_layer(dtype: torch.dtype) -> None:
    """What diffusers puts in the place of a linear layer for `load_in_4bit`, `nf4`."""
    import bitsandbytes

    own = nn.Linear(128, 96, dtype=dtype)
    theirs = bitsandbytes.nn.Linear4bit(
        128, 96, compute_dtype=dtype, compress_statistics=False, quant_type="nf4"
    )
    theirs.load_state_dict(own.state_dict())
    theirs = theirs.to("cpu")  # quantises
    quantise(nn.Sequential(own), "nf4", device=CPU)
    assert torch.equal(own.codes.flatten(), theirs.weight.data.flatten())
    assert torch.equal(own.scales, theirs.weight.quant_state.absmax)
    inputs = [torch.randn(3, 128).to(dtype).requires_grad_(True) for _ in range(1)]
    inputs.append(inputs[0].detach().clone().requires_grad_(True))
    outputs = [layer(x) for layer, x in zip((own, theirs), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", PIPELINES)
def test_a_training_is_the_plain_one_on_the_rounded_network(
    family: str, kind: Any, rounded: Any, tmp_path: Path
) -> None:
    network = load_denoiser(base_of(family, kind), device=CPU)
    compare(family, DPO, tmp_path, network=network, model=rounded(family, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing_and_a_resume_is_exact(kind: Any, tmp_path: Path) -> None:
    def trained(folder: str, **changes: Any) -> dict[str, Tensor]:
        network = load_denoiser(base_of("flux", kind), device=CPU)
        stage = DPO.model_copy(update={"steps": 4, "checkpoint_every": 2, **changes})
        run(stage, str(tmp_path / folder), network=network, family="flux")
        return load_file(tmp_path / folder / "pytorch_lora_weights.safetensors")

    whole = trained("whole")
    trained("parts", steps=2)
    for other in (trained("sparse", gradient_checkpointing=True), trained("parts")):
        assert all(torch.equal(value, whole[key]) for key, value in other.items())


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_compute_the_same_and_keep_no_weight_for_backward(kind: Any) -> None:
    deep = BASES["sd35m"].model_copy(update={"model": str(small.path("sd3-deep"))})

    def made() -> Denoiser:
        return adapted(deep.model_copy(update={"quantise": kind}))

    torch._dynamo.reset()
    expected, own = passed(made(), "sd35m"), made()
    compile_blocks(own.module, backend="aot_eager")
    stored = [part for part in own.module.modules() if isinstance(part, QuantisedLinear)]
    shapes = {tuple(part.weight.shape) for part in stored}
    shapes -= {(32, 32)}  # some activations are as large
    kept: Counter[torch.dtype] = Counter()

    def note(value: Tensor) -> Tensor:
        kept[value.dtype] += 1
        assert not (value.is_floating_point() and tuple(value.shape) in shapes)
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        found = passed(own, "sd35m")
    torch._dynamo.reset()
    # A layer whose input has no gradient, as of text, keeps nothing.
    assert kept[torch.int8 if kind == "int8" else torch.uint8] > len(stored) / 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", PIPELINES)
def test_images_are_drawn_with_the_network_that_was_trained(
    family: str, kind: Any, rounded: Any, tmp_path: Path
) -> None:
    made = adapted(base_of(family, kind, dtype="float32"))
    values = adapters.state(made.module, LEARNER)
    lora.save(values, LORAS[family], folder=str(tmp_path), component=made.component)
    config = GenerateConfig(seeds=(7,), steps=2, size=64, guidance=3)
    stage = Generate(base_of(family, kind, dtype="float32"), config, loras={"ours": str(tmp_path)})
    stage.setup()
    prompt = "a photo of a red ball"
    rows = [{"model": model, "prompt": prompt, "noise": 7} for model in (BASE, "ours")]
    ours = stage.compute(stage.prepare(rows))

    pipeline = PIPELINES[family].from_pretrained(rounded(family, kind), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for number in range(2):
        if number:
            pipeline.load_lora_weights(str(tmp_path))
        [expected] = pipeline(
            prompt=prompt,
            num_inference_steps=2,
            guidance_scale=3,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(7),
            output_type="np",
        ).images
        assert np.abs(ours[number] - expected).max() < 1e-4
    assert np.abs(ours[0] - ours[1]).max() > 1e-2


def test_the_merged_pipeline_is_of_the_base_as_it_was_published(tmp_path: Path) -> None:
    made = adapted(base_of("sd15", "int8"))
    values = adapters.state(made.module, LEARNER)
    lora.save(values, LORAS["sd15"], folder=str(tmp_path / "lora"), component="unet")
    files = []
    for kind in ("", "int8"):
        folder = tmp_path / f"fused-{kind}"
        base = base_of("sd15", kind)
        fuse(base, lora=str(tmp_path / "lora"), dtype="float32", folder=str(folder))
        files.append(load_file(folder / "unet" / "diffusion_pytorch_model.safetensors"))
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(value, files[1][key]) for key, value in files[0].items())


def test_only_what_depends_on_the_network_is_made_anew(tmp_path: Path) -> None:
    def made(*more: str) -> Run:
        return Run(load(RunConfig, "tiny", [f"storage={tmp_path}", *more]))

    plain, own = made(), made("base.quantise=int8")
    assert "base.quantise" not in results_of({"": plain.config})
    assert plain.cache.fingerprint == own.cache.fingerprint
    assert any("linear layers in int8" in line for line in outlook(own, estimate=lambda *_: None))
    names = plain.trained
    assert all(plain.trained[n].fingerprint != own.trained[n].fingerprint for n in names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lora.rank=0", "lora.rank=0 trains all; set lora.rank"),
        ("evaluate.fuse=true", "leave evaluate.fuse out"),
        ("evaluate.dtype=float16", "evaluate.dtype=float16: with base.quantise=int8"),
    ],
)
def test_what_a_quantised_base_cannot_do_is_refused(given: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(RunConfig, "sd15", [*GIVEN, "base.quantise=int8", given])


def test_without_the_library_the_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypref.core.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"bitsandbytes is not installed; pip install 'raypref\["):
        checks.check_base(base_of("sd15", "nf4"))
    checks.check_base(base_of("sd15", "int8"))


def test_a_base_that_is_quantised_on_the_disk_is_refused(tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(BASES["flux"].model, copied)
    base = BASES["flux"].model_copy(update={"model": str(copied)})
    checks.check_base(base)
    file = copied / "transformer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    said = r"'.*' is quantised already \(bitsandbytes\); take the model with 16 or 32 bits"
    with pytest.raises(InputError, match=f"base.model: the transformer of {said}"):
        checks.check_base(base)
    other = BASES["flux"].model_copy(update={"network": str(copied)})
    with pytest.raises(InputError, match=f"base.network: the transformer of {said}"):
        checks.check_base(other)
    file.write_text(json.dumps(config))
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = {k: v.to(torch.float8_e4m3fn) for k, v in load_file(weights).items()}
    save_file(tensors, weights)
    with pytest.raises(InputError, match=r"quantised already \(F8_E4M3\)"):
        checks.check_base(base)
    with pytest.raises(InputError, match=r"base.model='.*flux.gguf': weights in GGUF files"):
        load(RunConfig, "flux", [*GIVEN, "base.model=city96/FLUX.1-dev-gguf/flux.gguf"])


# ------------------------------------------------------------------ memory


def published() -> dict[str, nn.Module]:
    """Networks of the published sizes, without weights."""
    with torch.device("meta"):
        return {
            "sd15": full.networks("sd15", "full")["unet"],
            "sd35m": full.networks("sd35m", "full")["transformer"],
            "flux": FluxTransformer2DModel(in_channels=64, guidance_embeds=True),
            "flux_fill": FluxTransformer2DModel(
                in_channels=384, out_channels=64, guidance_embeds=True
            ),
            "z_image": ZImageTransformer2DModel(),
            "qwen_image": QwenImageTransformer2DModel(),
        }


def test_the_weights_of_linear_layers_at_full_size() -> None:
    for name, network in published().items():
        each = [part.weight.numel() for part in network.modules() if isinstance(part, nn.Linear)]
        assert SIZES[name].linear == pytest.approx(sum(each) / 1e9, rel=1e-3), name
        assert max(each) / 1e9 < WIDEST


def test_memory_by_hand() -> None:
    """FLUX.1's 11.8983e9 weights in bytes of int8, or half of one and 4 of a scale per 64."""
    more = ["trainings=stage2", *memory.SMALL[2:4]]

    def gib(kind: str) -> dict[str, float]:
        return predicted_gib(load(RunConfig, "flux", [*memory.GIVEN, *more, *kind.split()]))

    rest = (11.9014 - 11.8983 + 0.085) * 2e9 / 2**30  # in bfloat16: norms, one layer dequantised
    adapter = 16 * 0.001634e9 * 4 * 6 / 2**30
    work = 2 * SIZES["flux"].recomputed
    for kind, each in (("int8", 1), ("nf4", 0.5625)):
        expected = 11.8983e9 * each / 2**30 + rest + work + 1.5
        rank = load(RunConfig, "flux", [*GIVEN]).lora.rank
        found = gib(f"base.quantise={kind}")
        assert found["stage2"] == pytest.approx(expected + adapter * rank / 16, abs=0.06)
        saved = gib("")["images"] - found["images"]
        assert saved == pytest.approx(11.8983e9 * (2 - each) / 2**30 - 0.16, abs=0.11)
        assert found["cache"] == gib("")["cache"]

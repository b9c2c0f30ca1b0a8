"""LoRA weights in the layouts of others."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.utils import convert_unet_state_dict_to_peft
from safetensors.torch import load_file, save_file
from torch import nn
from training import BASES

from raypref.core.config import InputError
from raypref.models import adapters, lora, lora_formats
from raypref.models.backbone import BackboneConfig, load_denoiser, load_pipeline
from raypref.models.families.registry import FAMILIES, family
from raypref.models.lora_config import LoraConfig


def test_a_kohya_file_is_read_at_the_strength_it_was_trained_with(tmp_path):
    layers = [
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_k",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
        "up_blocks.1.attentions.0.proj_in",
    ]
    tensors, deltas = {}, {}
    for seed, layer in enumerate(layers):
        torch.manual_seed(seed)
        down, up, alpha = torch.randn(4, 8), torch.randn(6, 4), 1.0 + seed
        name = "lora_unet_" + layer.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        deltas[layer] = up @ down * (alpha / 4)
    save_file(tensors, tmp_path / "kohya.safetensors")
    file = str(tmp_path / "kohya.safetensors")
    found = lora_formats.read_lora(file, key="train.stage1.start", component="unet")
    assert found.rank == 4
    assert {name.rpartition(".lora_")[0] for name in found.values} == set(layers)
    for layer, delta in deltas.items():
        a, b = (found.values[f"{layer}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(b @ a, delta)


# What ComfyUI looks for (comfy/lora.py: model_lora_keys_unet, load_lora): per network, its name
# for a module of diffusers, and the ends of up and down. Without `.alpha` it multiplies by 1.
COMFYUI = {
    "unet": (
        lambda module: "lora_unet_" + module.replace(".", "_"),
        ".lora_up.weight",
        ".lora_down.weight",
    ),
    "transformer": (lambda module: "transformer." + module, ".lora_B.weight", ".lora_A.weight"),
}


def trained_lora(base: BackboneConfig, folder: Path) -> tuple[nn.Module, LoraConfig]:
    """A network with a LoRA of random values whose rank is not its alpha, and its two files."""
    denoiser = load_denoiser(base, device=torch.device("cpu"))
    config = LoraConfig(rank=3, alpha=7, targets=family(base.family).targets)
    adapters.attach(denoiser.module, config, names=("learner",), seed=1)
    noise = torch.Generator().manual_seed(1)
    size = adapters.vector(denoiser.module, "learner").shape
    adapters.fill(denoiser.module, "learner", 0.2 * torch.randn(size, generator=noise))
    values = adapters.state(denoiser.module, "learner")
    lora.save(values, config, folder=str(folder), component=denoiser.component)
    lora_formats.write_shared(str(folder), name="mine.safetensors", component=denoiser.component)
    return denoiser.module, config


def drawn(base: BackboneConfig, file: Path | None) -> np.ndarray:
    """A picture by the plain pipeline, with a LoRA file or without."""
    pipeline = load_pipeline(base, device=torch.device("cpu"))
    if file:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    arguments = family(base.family).arguments(["a red ball"], 2.0, 64)
    generator = [torch.Generator().manual_seed(3)]
    images = pipeline(
        **arguments, num_inference_steps=2, generator=generator, output_type="np"
    ).images
    return np.asarray(images)


@pytest.mark.parametrize("name", FAMILIES)
def test_our_second_file_is_the_same_lora_to_comfyui_and_to_diffusers(tmp_path, name):
    base = BASES[name].model_copy(update={"dtype": "float32"})
    network, config = trained_lora(base, tmp_path)
    tensors = load_file(tmp_path / "mine.safetensors")
    key_of, up_end, down_end = COMFYUI[family(name).component]
    linear = [n for n, module in network.named_modules() if isinstance(module, nn.Linear)]
    adapted = [n for n in linear if any(n.endswith(f".{target}") for target in config.targets)]
    assert len(adapted) >= 8
    values = adapters.state(network, "learner")
    for module in adapted:
        key = key_of(module)
        up, down = tensors.pop(key + up_end), tensors.pop(key + down_end)
        alpha = tensors.pop(f"{key}.alpha", None)
        strength = 1.0 if alpha is None else alpha.item() / down.shape[0]
        a, b = (values[f"{module}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(strength * (up @ down), config.alpha / config.rank * (b @ a))
    assert not tensors, "keys that ComfyUI does not load"
    with_ours = drawn(base, tmp_path / "pytorch_lora_weights.safetensors")
    assert np.array_equal(drawn(base, tmp_path / "mine.safetensors"), with_ours)
    assert np.abs(with_ours - drawn(base, None)).mean() > 0.001


# ------------------------------------------------------------------ starts


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sdxl_inpaint", "sd35m", "flux"])
def test_our_second_file_is_a_start_too(tmp_path, name):
    trained_lora(BASES[name], tmp_path)
    component = family(name).component
    found, again = (
        lora_formats.read_lora(str(tmp_path / file), key="k", component=component)
        for file in ("pytorch_lora_weights.safetensors", "mine.safetensors")
    )
    assert found.values.keys() == again.values.keys()
    assert all(torch.equal(value, again.values[n]) for n, value in found.values.items())


def bare(layer: str) -> str:
    """A layer by the name of diffusers' scripts of 2023."""
    block, _, target = layer.rpartition(".to_")
    return f"{block}.processor.to_{target.removesuffix('.0')}_lora"


@pytest.mark.parametrize(("layout", "alpha"), [("2023", None), ("peft", None), ("peft", 2.0)])
def test_bare_names_are_a_start_at_the_strength_that_they_say(tmp_path, layout, alpha):
    layers = [
        f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.{target}"
        for target in ("to_q", "to_out.0")
    ]
    tensors, deltas = {}, {}
    for seed, layer in enumerate(layers):
        torch.manual_seed(seed)
        down, up = torch.randn(4, 8), torch.randn(6, 4)
        ends = (".down.weight", ".up.weight")
        name = bare(layer)
        if layout == "peft":
            name, ends = layer, (".lora_A.weight", ".lora_B.weight")
        tensors |= {name + ends[0]: down, name + ends[1]: up}
        if alpha:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha)
        deltas[layer] = up @ down * (alpha / 4 if alpha else 1)
    save_file(tensors, tmp_path / "bare.safetensors")
    file = str(tmp_path / "bare.safetensors")
    found = lora_formats.read_lora(file, key="k", component="unet")
    assert found.alpha == (alpha or 4)
    for layer, delta in deltas.items():
        a, b = (found.values[f"{layer}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(b @ a, delta)


def test_kohyas_sd3_layers_are_those_of_diffusers_own_converter(tmp_path):
    """Its authors' code makes queries, keys and values in one layer; kohya trains that one."""
    width, rank, alpha = 8, 2, 1.0
    native = {
        "x_block.attn.qkv": 3 * width,
        "x_block.attn2.qkv": 3 * width,
        "context_block.attn.qkv": 3 * width,
        "x_block.attn.proj": width,
        "x_block.attn2.proj": width,
        "context_block.attn.proj": width,
        "x_block.mlp.fc1": 4 * width,
        "x_block.mlp.fc2": width,
        "context_block.mlp.fc1": 4 * width,
        "context_block.mlp.fc2": width,
    }
    tensors, checkpoint = {}, sd3_checkpoint(width)
    for seed, (layer, rows) in enumerate(native.items()):
        torch.manual_seed(seed)
        path = f"joint_blocks.0.{layer}"
        columns = checkpoint[f"{path}.weight"].shape[1]
        down, up = torch.randn(rank, columns), torch.randn(rows, rank)
        name = "lora_unet_" + path.replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        checkpoint[f"{path}.weight"] = up @ down * (alpha / rank)
    save_file(tensors, tmp_path / "sd3.safetensors")
    file = str(tmp_path / "sd3.safetensors")
    found = lora_formats.read_lora(file, key="k", component="transformer")
    converted = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    layers = {name.partition(".lora_")[0] for name in found.values}
    assert len(layers) == 3 * 3 + 7
    for layer in layers:
        a, b = (found.values[f"{layer}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(b @ a, converted[f"{layer}.weight"])


def test_kohyas_sdxl_layers_are_those_of_diffusers_own_converter(tmp_path):
    """Its authors' code numbers the blocks; kohya trains all layers of the blocks' transformers."""
    depths = {f"input_blocks_{n}_1": depth for n, depth in {4: 2, 5: 2, 7: 10, 8: 10}.items()}
    depths |= {f"output_blocks_{n}_1": depth for n, depth in enumerate((10, 10, 10, 2, 2, 2))}
    depths["middle_block_1"] = 10
    attention = [f"attn{n}_to_{part}" for n in "12" for part in ("q", "k", "v", "out_0")]
    inner = [*attention, "ff_net_0_proj", "ff_net_2"]
    layers = [
        f"{block}_{name}"
        for block, depth in depths.items()
        for name in (
            *("proj_in", "proj_out"),
            *(f"transformer_blocks_{n}_{own}" for n in range(depth) for own in inner),
        )
    ]
    assert len(layers) == 722, "as kohya's trainer prints"
    # Residual blocks, and what changes the size, of those that train more than attention.
    for block in ("input_blocks_4_0", "middle_block_0", "middle_block_2", "output_blocks_5_0"):
        layers += [f"{block}_{name}" for name in ("in_layers_2", "emb_layers_1", "out_layers_3")]
    layers += ["input_blocks_4_0_skip_connection", "input_blocks_3_0_op", "output_blocks_2_2_conv"]
    tensors, rank, alpha = {}, 2, 1.0
    for name in layers:
        own = f"lora_unet_{name}"
        tensors[f"{own}.lora_down.weight"] = torch.randn(rank, 4)
        tensors[f"{own}.lora_up.weight"] = torch.randn(4, rank)
        tensors[f"{own}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "sdxl.safetensors")
    file = str(tmp_path / "sdxl.safetensors")
    found = lora_formats.read_lora(file, key="k", component="unet")
    theirs, _ = StableDiffusionXLPipeline.lora_state_dict(
        file, unet_config=SimpleNamespace(layers_per_block=2)
    )
    theirs = convert_unet_state_dict_to_peft(theirs)
    assert {f"unet.{name}" for name in found.values} == theirs.keys()
    for name, value in found.values.items():
        scale = alpha / rank if ".lora_B." in name else 1.0
        torch.testing.assert_close(value, theirs[f"unet.{name}"] * scale)


def test_kohyas_flux_layers_are_those_of_diffusers_own_converter(tmp_path):
    """Its authors' code makes queries, keys and values, and in half of the blocks the first layer
    of the feed-forward network too, in one layer; kohya trains that one."""
    width, mlp = 3072, 4 * 3072
    streams = {"attn_qkv": (width, 3 * width), "attn_proj": (width, width)}
    streams |= {"mlp_0": (width, mlp), "mlp_2": (mlp, width), "mod_lin": (width, 6 * width)}
    double = {f"{stream}_{n}": own for stream in ("img", "txt") for n, own in streams.items()}
    single = {"linear1": (width, 3 * width + mlp), "linear2": (width + mlp, width)}
    single["modulation_lin"] = (width, 3 * width)
    layers = {f"double_blocks_{n}_{name}": own for n in range(19) for name, own in double.items()}
    layers |= {f"single_blocks_{n}_{name}": own for n in range(38) for name, own in single.items()}
    assert len(layers) == 304, "as kohya's trainer prints"
    tensors, rank, alpha = {}, 2, 1.0
    for name, (columns, rows) in layers.items():
        own = f"lora_unet_{name}"
        tensors[f"{own}.lora_down.weight"] = torch.randn(rank, columns)
        tensors[f"{own}.lora_up.weight"] = torch.randn(rows, rank)
        tensors[f"{own}.alpha"] = torch.tensor(alpha)
    save_file(tensors, tmp_path / "flux.safetensors")
    file = str(tmp_path / "flux.safetensors")
    found = lora_formats.read_lora(file, key="k", component="transformer")
    theirs = FluxPipeline.lora_state_dict(file)
    assert {f"transformer.{name}" for name in found.values} == theirs.keys()
    scale = alpha / rank  # theirs is in A, ours in B
    for name, value in found.values.items():
        own = scale if ".lora_B." in name else 1 / scale
        assert torch.equal(value, theirs[f"transformer.{name}"] * own), name


@pytest.mark.parametrize(
    ("layer", "rows"), [("double_blocks_0_img_attn_qkv", 8), ("single_blocks_0_linear3", 8)]
)
def test_a_layer_that_flux_does_not_have_is_refused(tmp_path, layer, rows):
    own = f"lora_unet_{layer}"
    tensors = {f"{own}.lora_down.weight": torch.ones(2, 4)}
    tensors |= {f"{own}.lora_up.weight": torch.ones(rows, 2)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=rf"odd\.safetensors has no sound lora_down.* for {own};"):
        lora_formats.read_lora(str(tmp_path / "odd.safetensors"), key="k", component="transformer")


def sd3_checkpoint(width: int) -> dict[str, torch.Tensor]:
    """All weights of a small SD-3.5-Medium of two blocks, the first of dual attention, as its
    authors name them: the last block's text stream ends in a norm."""
    names = {"x_embedder.proj": (width, 4), "context_embedder": (width, width)}
    names |= {f"{part}_embedder.mlp.{n}": (width, width) for part in "ty" for n in (0, 2)}
    names |= {"final_layer.linear": (4, width), "final_layer.adaLN_modulation.1": (16, width)}
    for block in (0, 1):
        for stream in ("x_block", "context_block"):
            path = f"joint_blocks.{block}.{stream}"
            names[f"{path}.attn.qkv"] = (3 * width, width)
            names[f"{path}.adaLN_modulation.1"] = (2 * width, width)
            if (block, stream) == (1, "context_block"):
                continue
            names[f"{path}.attn.proj"] = (width, width)
            names[f"{path}.mlp.fc1"] = (4 * width, width)
            names[f"{path}.mlp.fc2"] = (width, 4 * width)
    names |= {f"joint_blocks.0.x_block.attn2.{n}": (r * width, width) for n, r in SECOND}
    weights = {f"{name}.weight": torch.zeros(shape) for name, shape in names.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in names.items()}
    return weights | {"pos_embed": torch.zeros(1, 4, width)}


SECOND = (("qkv", 3), ("proj", 1))


@pytest.mark.parametrize("name", ["sd35m", "flux_fill"])
def test_onetrainers_names_are_those_of_the_transformer(name, tmp_path):
    network = load_denoiser(BASES[name], device=torch.device("cpu")).module
    linear = [n for n, m in network.named_modules() if isinstance(m, nn.Linear) and ".attn" in n]
    tensors = {}
    for layer in linear:
        own = "lora_transformer_" + layer.replace(".", "_")
        tensors[f"{own}.lora_down.weight"] = torch.ones(2, 4)
        tensors[f"{own}.lora_up.weight"] = torch.ones(4, 2)
        tensors[f"{own}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "one.safetensors")
    file = str(tmp_path / "one.safetensors")
    found = lora_formats.read_lora(file, key="k", component="transformer")
    assert {key.rpartition(".lora_")[0] for key in found.values} == set(linear)
    assert found.alpha == 1.0
    assert all((v == 0.5).all() for key, v in found.values.items() if "lora_B" in key)


# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("name", ["lora_up.weight", "lora_down.weight", "alpha"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_diverged_are_refused_before_any_work(name, value, tmp_path):
    layer = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_k"
    tensors = {"lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.ones(6, 4)}
    tensors = {f"{layer}.{end}": tensor for end, tensor in tensors.items()}
    tensors[f"{layer}.alpha"] = torch.tensor(2.0)
    file = str(tmp_path / "kohya.safetensors")
    save_file(tensors, file)
    lora_formats.read_lora(file, key="train.stage1.start", component="unet")
    tensors[f"{layer}.{name}"].view(-1)[0] = value
    save_file(tensors, file)
    with pytest.raises(InputError, match=r"train\.stage1\.start: .* not finite") as caught:
        lora_formats.read_lora(file, key="train.stage1.start", component="unet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"7", b"\xff", b"[" * 10**5])
def test_a_damaged_configuration_of_peft_is_refused_in_one_line(tmp_path, content):
    save_file(
        {"base_model.model.x.lora_A.weight": torch.zeros(2, 4)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.stage1\.start: .*adapter_config\.json") as caught:
        lora_formats.read_lora(str(tmp_path), key="train.stage1.start", component="unet")
    assert "\n" not in str(caught.value)


def test_a_damaged_lora_file_is_read_or_refused_and_nothing_else(tmp_path):
    """Every byte may be another: what comes out is weights or an InputError of one line."""
    whole = tmp_path / "whole.safetensors"
    values = {
        "unet.a.to_q.lora_A.weight": torch.ones(2, 4),
        "unet.a.to_q.lora_B.weight": torch.ones(4, 2),
    }
    save_file(values, whole, metadata={"lora_adapter_metadata": '{"unet.lora_alpha": 2}'})
    data, rng = whole.read_bytes(), random.Random(0)
    for number in range(300):
        bad = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
        for _ in range(rng.randrange(1, 6)):
            if bad:
                bad[rng.randrange(min(len(bad), 300))] = rng.randrange(256)
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(bad)
        try:
            lora_formats.read_lora(str(file), key="k", component="unet")
        except InputError as error:
            assert "\n" not in str(error)

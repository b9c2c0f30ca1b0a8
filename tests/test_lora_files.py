"""LoRA weights in the layouts of others."""

import random

import pytest
import small
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from raypref.core.config import InputError
from raypref.models import adapters, lora, lora_formats
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


def test_our_lora_is_written_as_comfyui_knows_it_and_is_the_same_update(tmp_path):
    config = LoraConfig(rank=3, alpha=6)
    unet = UNet2DConditionModel.from_pretrained(small.path("sd15"), subfolder="unet")
    adapters.attach(unet, config, names=("learner",), seed=1)
    values = {k: torch.randn(v.shape) for k, v in adapters.state(unet, "learner").items()}
    lora.save(values, config, folder=str(tmp_path), component="unet")
    lora_formats.write_kohya(str(tmp_path), component="unet")
    tensors = load_file(tmp_path / "kohya.safetensors")
    # The names that kohya's trainer gives, and ComfyUI looks for.
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert {f"{layer}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")} <= {
        *tensors
    }
    assert len(tensors) == 3 * len(values) // 2
    found = lora_formats.read_lora(str(tmp_path / "kohya.safetensors"), key="k", component="unet")
    for name in (key.removesuffix(".lora_A.weight") for key in values if ".lora_A." in key):
        a, b = (values[f"{name}.lora_{part}.weight"] for part in "AB")
        ours, theirs = (found.values[f"{name}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(theirs @ ours, 2 * b @ a)  # alpha / rank


def test_a_transformers_lora_has_no_such_file(tmp_path):
    lora_formats.write_kohya(str(tmp_path), component="transformer")
    assert not list(tmp_path.iterdir())


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

"""LoRA weights in the layouts of others."""

import small
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from raypref.diffusion import lora, lora_files
from raypref.diffusion.lora_config import LoraConfig


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
    found = lora_files.read(file, key="stage1.start", component="unet")
    assert found.rank == 4
    assert {name.rpartition(".lora_")[0] for name in found.values} == set(layers)
    for layer, delta in deltas.items():
        a, b = (found.values[f"{layer}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(b @ a, delta)


def test_our_lora_is_written_as_comfyui_knows_it_and_is_the_same_update(tmp_path):
    config = LoraConfig(rank=3, alpha=6)
    unet = UNet2DConditionModel.from_pretrained(small.path("sd15"), subfolder="unet")
    lora.attach(unet, config, names=("learner",), seed=1)
    values = {k: torch.randn(v.shape) for k, v in lora.state(unet, "learner").items()}
    lora.save(values, config, folder=str(tmp_path), component="unet")
    lora_files.write_kohya(str(tmp_path), component="unet")
    tensors = load_file(tmp_path / "kohya.safetensors")
    # The names that kohya's trainer gives, and ComfyUI looks for.
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    assert {f"{layer}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")} <= {
        *tensors
    }
    assert len(tensors) == 3 * len(values) // 2
    found = lora_files.read(str(tmp_path / "kohya.safetensors"), key="k", component="unet")
    for name in (key.removesuffix(".lora_A.weight") for key in values if ".lora_A." in key):
        a, b = (values[f"{name}.lora_{part}.weight"] for part in "AB")
        ours, theirs = (found.values[f"{name}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(theirs @ ours, 2 * b @ a)  # alpha / rank


def test_a_transformers_lora_has_no_such_file(tmp_path):
    lora_files.write_kohya(str(tmp_path), component="transformer")
    assert not list(tmp_path.iterdir())

"""LoRA weights in the layouts of others."""

import torch
from safetensors.torch import save_file

from raypref.diffusion import lora_files


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

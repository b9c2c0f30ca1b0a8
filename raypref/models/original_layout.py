"""SD-1.5's and SDXL's weights by the names of their authors' code, which ComfyUI and A1111 load."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SD15_TEXT, SDXL_TEXT = "cond_stage_model.", "conditioner."
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)")
_VAE_MIDDLE = {"resnets.0": "block_1", "attentions.0": "attn_1", "resnets.1": "block_2"}
_VAE_NAMES = {"conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def checkpoint(pipeline: Any) -> dict[str, Tensor]:
    """All weights of a pipeline as one checkpoint.

    Args:
        pipeline: diffusers', of SD-1.5, SDXL or their inpainting members.
    """
    unet, vae = pipeline.unet.state_dict(), pipeline.vae.state_dict()
    per_level = pipeline.unet.config.layers_per_block + 1
    levels = len(pipeline.vae.config.block_out_channels)
    found = {UNET + _unet_name(name, unet, per_level): value for name, value in unet.items()}
    for name, value in vae.items():
        own = _vae_name(name, levels)
        convolution = ".attn_1." in own and own.endswith("weight") and value.dim() == 2
        found[VAE + own] = value[:, :, None, None] if convolution else value
    text = pipeline.text_encoder.state_dict()
    first = SD15_TEXT
    if second := getattr(pipeline, "text_encoder_2", None):
        first = f"{SDXL_TEXT}embedders.0."
        open_clip = _open_clip(second.state_dict())
        found |= {f"{SDXL_TEXT}embedders.1.model.{name}": v for name, v in open_clip.items()}
    for name, value in text.items():
        found[f"{first}transformer.text_model.{name.removeprefix('text_model.')}"] = value
    return {name: value.contiguous() for name, value in found.items()}


def _unet_name(name: str, names: Mapping[str, Tensor], per_level: int) -> str:
    layer, _, end = name.rpartition(".")
    if layer in _UNET_ENDS:
        return f"{_UNET_ENDS[layer]}.{end}"
    if layer.startswith("mid_block."):
        _, kind, number, rest = layer.split(".", 3)
        return f"middle_block.{_MIDDLE[f'{kind}.{number}']}.{_UNET_RESNET.get(rest, rest)}.{end}"
    found = _BLOCK.fullmatch(layer)
    assert found is not None, name
    side, level, kind, number, rest = found.groups()
    place = per_level * int(level) + int(number)
    part = int(kind == "attentions")
    if kind == "downsamplers":
        place, rest = place + per_level - 1, "op"
    elif kind == "upsamplers":
        place += per_level - 1
        part = 2 if any(n.startswith(f"up_blocks.{level}.attentions.") for n in names) else 1
    first = "output_blocks" if side == "up" else "input_blocks"
    place += side == "down"  # `conv_in` is the first
    return f"{first}.{place}.{part}.{_UNET_RESNET.get(rest, rest)}.{end}"


def _vae_name(name: str, levels: int) -> str:
    layer, _, end = name.rpartition(".")
    coder, _, inner = layer.partition(".")
    if inner.startswith("mid_block."):
        _, kind, number, rest = inner.split(".", 3)
        rest = _VAE_ATTENTION[rest] if kind == "attentions" else _VAE_NAMES.get(rest, rest)
        return f"{coder}.mid.{_VAE_MIDDLE[f'{kind}.{number}']}.{rest}.{end}"
    if found := _BLOCK.fullmatch(inner):
        side, level, kind, number, rest = found.groups()
        place = levels - 1 - int(level) if side == "up" else int(level)  # numbered by resolution
        own = f"block.{number}.{_VAE_NAMES.get(rest, rest)}"
        own = own if kind == "resnets" else f"{side}sample.{rest}"
        return f"{coder}.{side}.{place}.{own}.{end}"
    return f"{coder}.{_VAE_NAMES[inner]}.{end}" if inner in _VAE_NAMES else name


def _open_clip(text: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder with projection, as OpenCLIP names it: queries, keys, values in one."""
    import torch

    found = {"text_projection": text["text_projection.weight"].T.contiguous()}
    for full, value in text.items():
        name = full.removeprefix("text_model.")
        if name in _OPEN_CLIP:
            found[_OPEN_CLIP[name]] = value
        elif name.startswith("encoder.layers."):
            _, _, number, rest = name.split(".", 3)
            layer, _, end = rest.rpartition(".")
            own = f"transformer.resblocks.{number}"
            if layer in _OPEN_CLIP_LAYER:
                found[f"{own}.{_OPEN_CLIP_LAYER[layer]}.{end}"] = value
            elif layer == "self_attn.q_proj":
                parts = [text[full.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                found[f"{own}.attn.in_proj_{end}"] = torch.cat(parts)
    return found

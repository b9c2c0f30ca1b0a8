"""Layers of a LoRA by the names that kohya's trainer and OneTrainer give them, as diffusers' names.

kohya's trainer writes a layer as `lora_unet_` and its path with underscores, and three tensors per
layer: `.lora_down.weight` (A), `.lora_up.weight` (B) and `.alpha`. The path in SD-1.5's UNet is
diffusers'. In SDXL's UNet and in the transformers of SD-3 and FLUX.1 it is that of their authors'
code: the first has numbered blocks; in the others one layer makes queries, keys and values.
OneTrainer writes `lora_transformer_` and diffusers' path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

# By the pipeline's part that they are for.
PREFIXES = {
    "unet": ("lora_unet_",),
    "transformer": (
        *("lora_transformer_", "lora_unet_joint_blocks"),
        *("lora_unet_double_blocks", "lora_unet_single_blocks"),
    ),
}
# The underscores that belong to a name; the dots between names are written as underscores too.
_NAMES = re.compile(
    r"(single)\.(transformer)\.(blocks)|(down|up|transformer)\.(blocks)|(mid)\.(block)"
    r"|(to)\.(add)\.(out)|(to)\.([qkv]|out)"
    r"|(add)\.([qkv])\.(proj)|(proj|conv)\.(in|out)|(ff|norm1)\.(context)"
    r"|(time)\.(emb)\.(proj)|(conv)\.(shortcut)"
)
_JOINT = re.compile(r"lora_unet_joint_blocks_(\d+)_(x|context)_block_(attn2?|mlp)_(\w+)")
# Layers of an SD-3 block, of the image's stream and of the text's.
_ATTENTION = {
    ("x", "qkv"): ("to_q", "to_k", "to_v"),
    ("x", "proj"): ("to_out.0",),
    ("context", "qkv"): ("add_q_proj", "add_k_proj", "add_v_proj"),
    ("context", "proj"): ("to_add_out",),
}
_FORWARD = {"fc1": "net.0.proj", "fc2": "net.2"}
_FLUX = re.compile(r"lora_unet_(double|single)_blocks_(\d+)_(\w+)")
# Layers of a FLUX.1 block, and how the rows of each are shared out where one stands for several.
_DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_MLP_RATIO = 4  # rows of `proj_mlp`, per row of a query
_NUMBERED = re.compile(r"lora_unet_(?:(input|output)_blocks_(\d+)|middle_block)_([0-2])_(\w+)")
_BLOCKS_PER_LEVEL = 3  # of SDXL, and of the other UNets of its authors
# Layers of a residual block.
_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def is_layout(names: Iterable[str], component: str) -> bool:
    """Whether tensors of these names are a LoRA of the pipeline's part in one of these layouts."""
    named = list(names)
    return bool(named) and all(name.startswith(PREFIXES[component]) for name in named)


def layers(layer: str, down: Tensor, up: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers of diffusers' network that one layer of the file stands for.

    Args:
        layer: its name in the file, as `lora_unet_mid_block_attentions_0_proj_in`.
        down: A, [rank, in].
        up: B, [out, rank].

    Returns:
        A and B by diffusers' name; empty where there is no such layer.
    """
    if joint := _JOINT.fullmatch(layer):
        block, stream, part, end = joint.groups()
        names: tuple[str, ...]
        if part == "mlp":
            feed = "ff" if stream == "x" else "ff_context"
            names = (f"{feed}.{_FORWARD[end]}",) if end in _FORWARD else ()
        else:
            names = tuple(f"{part}.{name}" for name in _ATTENTION.get((stream, end), ()))
        return _shared_out(f"transformer_blocks.{block}", names, down, up)
    if flux := _FLUX.fullmatch(layer):
        kind, block, end = flux.groups()
        path = f"{'single_' * (kind == 'single')}transformer_blocks.{block}"
        names = (_SINGLE if kind == "single" else _DOUBLE).get(end, ())
        return _shared_out(path, names, down, up)
    if numbered := _NUMBERED.fullmatch(layer):
        layer = _by_level(*numbered.groups())
    path = re.sub("^lora_(unet|transformer)_", "", layer).replace("_", ".")
    name = _NAMES.sub(lambda found: "_".join(filter(None, found.groups())), path)
    return {name: (down, up)}


def _shared_out(
    path: str, names: tuple[str, ...], down: Tensor, up: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers of a block whose rows one layer of the file holds, in this order."""
    shares = [_MLP_RATIO if name == "proj_mlp" else 1 for name in names]
    if not names or len(up) % sum(shares):
        return {}
    rows = [share * len(up) // sum(shares) for share in shares]
    return {f"{path}.{name}": (down, own) for name, own in zip(names, up.split(rows), strict=True)}


def _by_level(side: str | None, block: str | None, part: str, rest: str) -> str:
    """A layer of a numbered block as diffusers names it, by level, with underscores."""
    if (side, block) == ("input", "0"):
        return "conv_in"
    if side is None:  # the middle: residual block, attention, residual block
        level, place = "mid_block", ("resnets_0", "attentions_0", "resnets_1")[int(part)]
    else:
        number, layer = divmod(int(block or 0) - (side == "input"), _BLOCKS_PER_LEVEL)
        level = f"{'down' if side == 'input' else 'up'}_blocks_{number}"
        place = f"{'attentions' if part == '1' else 'resnets'}_{layer}"
    if rest == "op":
        place, rest = "downsamplers_0", "conv"
    elif rest == "conv":
        place = "upsamplers_0"
    return f"{level}_{place}_{_RESNET.get(rest, rest)}"

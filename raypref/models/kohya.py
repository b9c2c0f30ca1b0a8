"""Layers of a LoRA by the names that kohya's trainer and OneTrainer give them, as diffusers' names.

kohya's trainer writes a layer as `lora_unet_` and its path with underscores, and three tensors per
layer: `.lora_down.weight` (A), `.lora_up.weight` (B) and `.alpha`. The path in SD-1.5's UNet is
diffusers'. In SDXL's UNet and in an SD-3 transformer it is that of their authors' code: the first
has numbered blocks; in the second one layer makes queries, keys and values. OneTrainer writes
`lora_transformer_` and diffusers' path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

# By the pipeline's part that they are for.
PREFIXES = {"unet": ("lora_unet_",), "transformer": ("lora_transformer_", "lora_unet_joint_blocks")}
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
    joint = _JOINT.fullmatch(layer)
    if joint:
        block, stream, part, end = joint.groups()
        path = f"transformer_blocks.{block}"
        if part == "mlp":
            names = [f"{'ff' if stream == 'x' else 'ff_context'}.{_FORWARD[end]}"] * (
                end in _FORWARD
            )
        else:
            names = [f"{part}.{name}" for name in _ATTENTION.get((stream, end), ())]
        if not names or len(up) % len(names):
            return {}
        ups = up.chunk(len(names))
        return {f"{path}.{name}": (down, own) for name, own in zip(names, ups, strict=True)}
    if numbered := _NUMBERED.fullmatch(layer):
        layer = _by_level(*numbered.groups())
    path = re.sub("^lora_(unet|transformer)_", "", layer).replace("_", ".")
    name = _NAMES.sub(lambda found: "_".join(filter(None, found.groups())), path)
    return {name: (down, up)}


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

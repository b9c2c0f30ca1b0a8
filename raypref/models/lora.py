"""LoRA files of our own layout: written, read into an adapter, and why one does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from safetensors.torch import load as decode
from safetensors.torch import save as encode
from torch import Tensor, nn

from raypref.core.config import InputError
from raypref.core.ledger import join, read_bytes, write_bytes
from raypref.models import adapters
from raypref.models.lora_config import FILE_NAME, LoraConfig


def save(values: Mapping[str, Tensor], config: LoraConfig, *, folder: str, component: str) -> None:
    """Write adapter values where `pipe.load_lora_weights(folder)` finds them.

    The scale alpha/rank is folded into B and the file says alpha = rank: loaders that ignore
    metadata (they assume just that) then apply the update at full strength.

    Args:
        values: what `adapters.state` returned.
        config: the adapter's shape.
        folder: where `pytorch_lora_weights.safetensors` is written, local or URI.
        component: the pipeline's part it belongs to, `unet` or `transformer`.
    """
    scale = config.alpha / config.rank
    folded = {k: v * scale if ".lora_B." in k else v for k, v in values.items()}
    # Each part's LoRAs go by the keys that its own pipeline saves: transformers keep peft's.
    layout = convert_state_dict_to_diffusers(folded) if component == "unet" else folded
    tensors = {f"{component}.{k}": v.detach().cpu().contiguous() for k, v in layout.items()}
    write_bytes(join(folder, FILE_NAME), encode(tensors, metadata={"format": "pt"}))


def load_weights(
    module: nn.Module, config: LoraConfig, *, folder: str, name: str, component: str
) -> None:
    """Fill an adapter from a file that `save` or diffusers wrote (`lora_formats` reads others).

    Raises:
        InputError: no such file, or its layers or rank differ from the adapter's.
    """
    path = join(folder, FILE_NAME)
    data = read_bytes(path)
    if data is None:
        raise InputError(f"no LoRA weights at {path}")
    tensors = {k.removeprefix(f"{component}."): v for k, v in decode(data).items()}
    values = convert_unet_state_dict_to_peft(tensors)
    if wrong := misfit(values, adapters.state(module, name), config):
        raise InputError(f"the LoRA in {path} {wrong}")
    scale = config.alpha / config.rank
    unfolded = {k: v / scale if ".lora_B." in k else v for k, v in values.items()}
    adapters.set_state(module, name, unfolded)


def misfit(
    found: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    config: LoraConfig,
    *,
    alpha: float | None = None,
) -> str:
    """What keeps weights from being an adapter's, with the fix; empty when they fit.

    Args:
        found: the weights by peft's key.
        own: the adapter's.
        config: the adapter's shape.
        alpha: which the weights were trained with, where that is known.
    """
    ranks = {len(value) for key, value in found.items() if ".lora_A." in key}
    if ranks != {config.rank}:
        rank = " and ".join(map(str, sorted(ranks)))
        fix = f"set lora.rank={rank}" + (f" lora.alpha={alpha:g}" if alpha else "")
        return f"has rank {rank}, and lora.rank is {config.rank}; {fix}"
    theirs, ours = ({key.rpartition(".lora_")[0] for key in values} for values in (found, own))
    if theirs != ours:
        more, less = sorted(theirs - ours), sorted(ours - theirs)
        parts = [f"{len(more)} layers beyond lora.targets, such as {more[0]}"] if more else []
        parts += [f"no weights for {len(less)} of its layers, such as {less[0]}"] if less else []
        targets = ", ".join(f'"{name}"' for name in sorted({_target(key) for key in theirs}))
        return f"has {' and '.join(parts)}; set lora.targets='[{targets}]' if it is for this model"
    for key, value in found.items():
        if value.shape != own[key].shape:
            return (
                f"is for another model: {key} is {tuple(value.shape)}, here {tuple(own[key].shape)}"
            )
    return ""


def _target(layer: str) -> str:
    """The part of a layer's name that is the same in every block, as `attn.to_out.0`."""
    names = layer.split(".")
    last = max((i for i, name in enumerate(names[:-1]) if name.isdigit()), default=-1)
    return ".".join(names[last + 1 :])

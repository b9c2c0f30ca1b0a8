"""LoRA adapters on a denoiser: attach, switch, copy, save and load.

One module carries several adapters of one shape, so the base weights exist once: `learner` is
trained, `ref` is its frozen copy from the start of the stage, `policy` a lagging copy that samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
from diffusers.utils import convert_state_dict_to_diffusers, convert_unet_state_dict_to_peft
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load as decode
from safetensors.torch import save as encode
from torch import Tensor, nn

from raypref.core.config import InputError
from raypref.core.ledger import join, read_bytes, write_bytes
from raypref.core.rows import seed_of
from raypref.models.lora_config import FILE_NAME, LoraConfig

# The layers of each module that carry adapters. To look for them at every switch costs a twentieth
# of a training of small networks.
_adapted: WeakKeyDictionary[nn.Module, list[BaseTunerLayer]] = WeakKeyDictionary()


def attach(module: nn.Module, config: LoraConfig, *, names: tuple[str, ...], seed: int) -> None:
    """Add equal adapters to a module and freeze everything.

    A is Gaussian with std 1/rank, B zero, so the module computes what it did before. The draw
    depends on `seed` alone: not on precision, device or the global random state.

    Args:
        module: a diffusers denoiser; its own weights are frozen.
        config: shape of the adapters.
        names: adapter names; all hold the same values.
        seed: seed of the initial values.
    """
    module.requires_grad_(False)
    peft = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number works, the hint says int
        target_modules=list(config.targets),
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name in names:
            inject_adapter_in_model(peft, module, adapter_name=name)
    generator = torch.Generator().manual_seed(seed_of(seed, "lora"))
    for key, parameter in module.named_parameters():
        if "lora_" in key and parameter.dtype in (torch.float16, torch.bfloat16):
            # Half-precision base weights pass their dtype on; updates are too small for it.
            parameter.data = parameter.data.float()
        if f"lora_A.{names[0]}." in key:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / config.rank)
    for name in names[1:]:
        copy(module, names[0], name)
    _adapted[module] = [m for m in module.modules() if isinstance(m, BaseTunerLayer)]
    activate(module, names[0])


def activate(module: nn.Module, name: str, *, train: bool = False) -> None:
    """Make one adapter the active one; only `train=True` makes it collect gradients."""
    for layer in _adapted[module]:
        layer.set_adapter(name, inference_mode=not train)


def parameters(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The adapter's parameters in a fixed order."""
    return [parameter for key, parameter in module.named_parameters() if f".{name}." in key]


def copy(module: nn.Module, source: str, target: str) -> None:
    """Overwrite one adapter's values with another's."""
    with torch.no_grad():
        for ours, theirs in zip(
            parameters(module, target), parameters(module, source), strict=True
        ):
            ours.copy_(theirs)


def state(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's values by peft's key, without the adapter's name."""
    return dict(get_peft_model_state_dict(module, adapter_name=name))


def save(values: Mapping[str, Tensor], config: LoraConfig, *, folder: str, component: str) -> None:
    """Write adapter values where `pipe.load_lora_weights(folder)` finds them.

    The scale alpha/rank is folded into B and the file says alpha = rank: loaders that ignore
    metadata (they assume just that) then apply the update at full strength.

    Args:
        values: what `state` returned.
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
    if wrong := misfit(values, state(module, name), config):
        raise InputError(f"the LoRA in {path} {wrong}")
    scale = config.alpha / config.rank
    unfolded = {k: v / scale if ".lora_B." in k else v for k, v in values.items()}
    set_peft_model_state_dict(module, unfolded, adapter_name=name)


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

"""Another UNet or transformer in a pipeline's place for it: Diffusion-DPO publishes just that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raypref.core.config import InputError
from raypref.models.hub import from_pretrained, model_folder, read_json

if TYPE_CHECKING:
    from torch import nn

KEY = "base.network"


def locate_network(ref: str, *, component: str) -> tuple[str, str]:
    """What to hand to `hub.from_pretrained`, and the subfolder in it.

    Args:
        ref: a hub id or folder that holds `unet/` or `transformer/`, or a folder that is one.
        component: `unet` or `transformer`.

    Raises:
        InputError: there is no such network.
    """
    if (Path(ref).expanduser() / "config.json").is_file():
        return str(Path(ref).expanduser()), ""
    return model_folder(ref, key=KEY, probe=f"{component}/config.json"), component


def skeleton(folder: str, subfolder: str, *, kind: str, key: str) -> nn.Module:
    """The network without weights (on the meta device), from its configuration alone.

    Args:
        folder: of `locate_network`, or of `hub.model_folder`.
        subfolder: of the network in it; empty where the folder is the network's.
        kind: its class in diffusers.
        key: the configuration key it came from, for the error.

    Raises:
        InputError: it has no readable configuration.
    """
    import diffusers
    import torch

    config = read_json(folder, f"{subfolder}/config.json".lstrip("/"), key=key)
    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, kind).from_config(config)
    return network


def replace(module: nn.Module, ref: str, *, component: str) -> None:
    """Overwrite a network's weights with another's, in place.

    Args:
        module: the network that the pipeline came with.
        ref: as in `locate_network`.
        component: `unet` or `transformer`.

    Raises:
        InputError: there is no such network, or it has another architecture.
    """
    folder, subfolder = locate_network(ref, component=component)
    dtype = next(module.parameters()).dtype
    other = from_pretrained(type(module), folder, subfolder=subfolder or None, dtype=dtype)
    check_same(other, module, ref=ref)
    module.load_state_dict(other.state_dict())


def check_same(other: nn.Module, module: nn.Module, *, ref: str) -> None:
    """Raise InputError if two networks differ in a weight's name or shape."""
    theirs = {name: tuple(value.shape) for name, value in other.state_dict().items()}
    ours = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"{KEY}: '{ref}' is another architecture than base.model: {name} is "
                f"{theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here"
            )

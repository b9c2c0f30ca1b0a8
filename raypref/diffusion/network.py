"""Another UNet or transformer in a pipeline's place for it: Diffusion-DPO publishes just that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from raypref.config import InputError, first_line
from raypref.hub import model_folder

KEY = "base.network"
# By the pipeline's name for it. (Any: the classes come from mixins that mypy cannot follow.)
CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "transformer": SD3Transformer2DModel}


def locate(ref: str, *, component: str) -> tuple[str, str]:
    """Folder or hub id to hand to `from_pretrained`, and the subfolder in it.

    Args:
        ref: a hub id or folder that holds `unet/` or `transformer/`, or a folder that is one.
        component: `unet` or `transformer`.

    Raises:
        InputError: there is no such network.
    """
    if (Path(ref).expanduser() / "config.json").is_file():
        return str(Path(ref).expanduser()), ""
    return model_folder(ref, key=KEY, probe=f"{component}/config.json"), component


def skeleton(folder: str, subfolder: str, *, component: str) -> nn.Module:
    """The network without weights (on the meta device), from its configuration alone."""
    kind = CLASSES[component]
    with torch.device("meta"):
        network: nn.Module = kind.from_config(config(kind, folder, subfolder))
    return network


def config(kind: Any, folder: str, subfolder: str = "") -> dict[str, Any]:
    """The configuration that a class of diffusers finds in a folder or hub repository.

    Raises:
        InputError: it is not there or cannot be read.
    """
    try:
        return dict(kind.load_config(folder, subfolder=subfolder or None))
    except OSError as error:
        raise InputError(
            f"no readable {kind.config_name} of {kind.__name__} in '{folder}' ({first_line(error)})"
        ) from None


def replace(module: nn.Module, ref: str, *, component: str) -> None:
    """Overwrite a network's weights with another's, in place.

    Args:
        module: the network that the pipeline came with.
        ref: as in `locate`.
        component: `unet` or `transformer`.

    Raises:
        InputError: there is no such network, or it has another architecture.
    """
    folder, subfolder = locate(ref, component=component)
    dtype = next(module.parameters()).dtype
    other = CLASSES[component].from_pretrained(folder, subfolder=subfolder or None, dtype=dtype)
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

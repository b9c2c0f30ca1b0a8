"""Whole networks, a UNet or transformer apart from its pipeline: written, read, put in its place.

Diffusion-DPO publishes just that, and trainings of all weights (`lora.rank=0`) write it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raypref.core.config import InputError
from raypref.core.ledger import filesystem, join, write_bytes
from raypref.models.hub import from_pretrained, model_folder, read_json
from raypref.models.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "base.network"
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"  # diffusers' names
COMPONENTS = ("unet", "transformer")


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


def write_network(
    module: nn.Module, values: Mapping[str, Tensor], *, folder: str, component: str
) -> None:
    """Write a network where `from_pretrained(folder, subfolder=component)` finds it.

    Args:
        module: the network; its configuration and buffers are written as they are.
        values: all its parameters by name, in the precision that is written.
        folder: local or URI; `config.json` comes last in its `component`.
        component: the pipeline's name for it, `unet` or `transformer`.
    """
    from torch.distributed.fsdp import FSDPModule

    config = json.loads(module.to_json_string())  # type: ignore[operator]
    config.pop("_name_or_path", None)  # where the base was
    kinds = type(module).__mro__  # sharded, with FSDP's before that of diffusers
    config["_class_name"] = next(k.__name__ for k in kinds if not issubclass(k, FSDPModule))
    tensors = {**module.state_dict(), **values}
    write_tensors(join(folder, component, WEIGHTS), tensors)
    text = json.dumps(config, indent=2, sort_keys=True)
    write_bytes(join(folder, component, CONFIG), f"{text}\n".encode())


def holds_network(folder: str, *, component: str) -> bool:
    """Whether a folder, local or URI, holds what `write_network` wrote."""
    if "://" not in folder and not Path(folder).is_dir():
        return False  # a hub id, or the text of a soup
    fs, path = filesystem(join(folder, component, CONFIG))
    return bool(fs.get_file_info(path).is_file)


def read_network(places: Mapping[str, Tensor], folder: str, *, component: str) -> dict[str, Tensor]:
    """The parameters and buffers that `write_network` wrote, by name, on the host.

    Args:
        places: those of a network of the same architecture.
        folder: local or URI.
        component: `unet` or `transformer`.

    Raises:
        InputError: there are none, or they are another network's.
    """
    path = join(folder, component, WEIGHTS)
    found = read_tensors(path)
    if found is None:
        raise InputError(f"no weights of a {component} at {path}")
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    for name, value in places.items():
        if shapes.get(name) != tuple(value.shape):
            raise InputError(
                f"{path} is another architecture than base.model: {name} is "
                f"{shapes.get(name, 'absent')} there and {tuple(value.shape)} here"
            )
    return found


class WholeNetworks:
    """Networks that take turns in a pipeline, whose own weights are one of them.

    Each is read when its turn comes. The host holds the pipeline's own.

    Args:
        module: the pipeline's network, where it computes, before LoRAs are put on it.
        folders: by name: where `write_network` wrote the others, local or URI.
        component: `unet` or `transformer`.
    """

    def __init__(self, module: nn.Module, folders: Mapping[str, str], *, component: str) -> None:
        from raypref.models.quantised import QuantisedLinear

        if any(isinstance(part, QuantisedLinear) for part in module.modules()):
            raise InputError(
                "base.quantise: a network that was trained whole is not quantised; leave it out"
            )
        self.places = module.state_dict()
        self.base = {name: place.cpu().clone() for name, place in self.places.items()}
        self.folders, self.component = dict(folders), component
        self.model = ""

    def use(self, model: str) -> None:
        """Draw with a network from now on; empty: with the pipeline's own."""
        if model == self.model:
            return
        found = self.base
        if model:
            found = read_network(self.places, self.folders[model], component=self.component)
        for name, place in self.places.items():
            place.copy_(found[name])
        self.model = model

"""Whether a base model is whole and fits what is asked of it, told from its small files alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypref.core.config import InputError
from raypref.core.extras import require_library
from raypref.images.decode import ImageConfig
from raypref.models import lora_formats, network
from raypref.models.backbone import BackboneConfig
from raypref.models.families.registry import FAMILIES, family
from raypref.models.hub import read_json
from raypref.models.lora_config import LoraConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from raypref.models.families.base import Family

KEY = "base.model"
SMALL = ("F8", "F4", "F6", "I8", "U8", "I4", "U4")  # types of safetensors that weights end up in

log = logging.getLogger(__name__)


def component_of(base: BackboneConfig) -> str:
    """The pipeline's name for the network that is trained, `unet` or `transformer`."""
    return family(base.family).component


def bare_network(base: BackboneConfig) -> nn.Module:
    """The network that is trained, without weights."""
    own = family(base.family)
    return network.skeleton(base.folder(), own.component, kind=own.network, key=KEY)


def check_base(base: BackboneConfig) -> None:
    """See that every part is there, of this family, and that `base.network` is like it.

    Raises:
        InputError: names the parts that are missing, the channels or weight that differ, weights
            that are quantised already, or the library that `base.quantise` needs.
    """
    if base.quantise == "nf4":
        require_library("bitsandbytes", setting="base.quantise=nf4", extra="quantised")
    folder, component = base.folder(), component_of(base)
    index, parts = read_json(folder, "model_index.json", key=KEY), family(base.family).parts
    absent = [part for part in parts if index.get(part, [None])[0] is None]
    if Path(folder).is_dir():
        absent = [part for part in parts if part in absent or not (Path(folder) / part).is_dir()]
    if absent:
        raise InputError(
            f"base.model: '{base.model}' has no {', '.join(absent)}; {base.family} needs a folder "
            f"with {', '.join(parts)} (a network alone goes into base.network)"
        )
    config = read_json(folder, f"{component}/config.json", key=KEY)
    own = family(base.family)
    _check_unquantised((folder, component), config, base.model, key=KEY)
    if not _told(own, config):
        channels = config.get("in_channels")
        what, wanted = f"reads {channels} channels", str(own.channels)
        if channels == own.channels:
            what = f"has {', '.join(f'{key}={config.get(key)}' for key in own.told_by)}"
            wanted = ", ".join(f"{key}={value}" for key, value in own.told_by.items())
        same = (n for n in FAMILIES if family(n).network == own.network)
        others = [n for n in same if _told(family(n), config)]
        raise InputError(
            f"base.model: the {component} of '{base.model}' {what}; the family "
            f"{base.family} needs {wanted}"
            f"{f'; set base.family={others[0]}' if others else ''}"
        )
    if base.network:
        where = network.locate_network(base.network, component=component)
        name = f"{where[1]}/{network.CONFIG}".lstrip("/")
        theirs = read_json(where[0], name, key=network.KEY)
        _check_unquantised(where, theirs, base.network, key=network.KEY)
        other = network.skeleton(*where, kind=family(base.family).network, key=network.KEY)
        network.check_same(other, bare_network(base), ref=base.network)


def _check_unquantised(
    where: tuple[str, str], config: Mapping[str, Any], ref: str, *, key: str
) -> None:
    """Raise InputError for a network whose weights are stored in 8 bits or fewer.

    Told from its configuration, and on this machine from its files.
    """
    from raypref.models.tensor_files import types_of

    folder, component = where
    how = config.get("quantization_config")
    found = [how.get("quant_method", "unknown") if isinstance(how, dict) else how] if how else []
    for file in sorted(Path(folder, component).glob("*.safetensors")):
        found += sorted(kind for kind in types_of(file) if kind.startswith(SMALL))
    if found:
        raise InputError(
            f"{key}: the {component or 'network'} of '{ref}' is quantised already ({found[0]}); "
            "take the model with 16 or 32 bits, and base.quantise=int8 or nf4"
        )


def _told(own: Family, config: Mapping[str, Any]) -> bool:
    """Whether a network's configuration is one of the family."""
    expected = {"in_channels": own.channels, **own.told_by}
    return all(config.get(key) == value for key, value in expected.items())


def check_side(base: BackboneConfig, side: int, *, key: str) -> None:
    """See that the model takes square images of this side.

    Args:
        base: the model.
        side: of the images, pixels.
        key: the setting it comes from.

    Raises:
        InputError: it is no multiple of the pixels that a latent, or a patch of them, stands for.
    """
    folder = base.folder()
    autoencoder = read_json(folder, "vae/config.json", key=KEY)
    own = read_json(folder, f"{component_of(base)}/config.json", key=KEY)
    unit = family(base.family).side_unit(autoencoder, own)
    if side % unit:
        raise InputError(f"{key}={side}: '{base.model}' takes sides that are multiples of {unit}")


def check_crops(base: BackboneConfig, images: ImageConfig) -> None:
    """See that the model takes images as photographs are cropped, squares or buckets.

    Raises:
        InputError: as `check_side`, of `images.size` and `images.bucket_step`.
    """
    check_side(base, images.size, key="images.size")
    check_side(base, images.bucket_step, key="images.bucket_step")


def check_adapter(base: BackboneConfig, config: LoraConfig) -> None:
    """See that the adapter finds its layers, and that it can be trained in the base's precision.

    With rank 0 all weights are trained, and there are no layers to find.

    Raises:
        InputError: names the target without a layer, or the precision.
    """
    if base.dtype == "float16":
        whose = "of a LoRA's gradients" if config.rank else "gradients"
        raise InputError(
            f"base.dtype=float16: most {whose} vanish in it; take bfloat16 or float32 "
            "(evaluate.dtype=float16 draws images in it)"
        )
    if not config.rank or {*config.targets} <= {*family(base.family).targets}:
        return  # to build the network would take seconds
    from torch import nn

    component, layers = component_of(base), dict(bare_network(base).named_modules())
    for target in config.targets:
        named = [layer for name, layer in layers.items() if f".{name}".endswith(f".{target}")]
        # A list of layers may have the name of a layer of other blocks, as `to_out` in FLUX.2.
        named = [layer for layer in named if not isinstance(layer, nn.ModuleList)]
        if not named or not all(isinstance(layer, nn.Linear) for layer in named):
            raise InputError(
                f"lora.targets: '{target}' names no linear layer of the {component} of "
                f"'{base.model}'"
            )


def check_lora(base: BackboneConfig, config: LoraConfig, ref: str, *, key: str) -> None:
    """See that LoRA weights to start from have the shape of the adapter that is trained.

    Raises:
        InputError: they are not there, or of another layout, rank or other layers.
    """
    from raypref.models import adapters, lora

    component = component_of(base)
    found = lora_formats.read_lora(ref, key=key, component=component, without_text=True)
    bare = bare_network(base)
    adapters.attach(bare, config, names=("start",), seed=0)
    own = adapters.state(bare, "start")
    if misfit := lora.misfit(found.values, own, config, alpha=found.alpha):
        raise InputError(f"{key}: the LoRA in {found.path} {misfit}")
    if found.left_out:
        log.warning(
            "%s: weights for text encoders in %s are left out (%d): only the %s is trained",
            *(key, found.path, found.left_out, component),
        )

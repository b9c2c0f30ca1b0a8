"""The model families there are, by the name that `base.family` takes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from raypref.core.config import InputError, Resources

if TYPE_CHECKING:
    from raypref.models.families.base import Family

# The module of each holds `FAMILY`. It is imported when the family is used: torch takes seconds.
FAMILIES = {
    "sd15": "raypref.models.families.sd15",
    "sd15_inpaint": "raypref.models.families.sd15_inpaint",
    "sd35m": "raypref.models.families.sd3",
    "sdxl": "raypref.models.families.sdxl",
    "sdxl_inpaint": "raypref.models.families.sdxl_inpaint",
    "flux": "raypref.models.families.flux",
    "flux_fill": "raypref.models.families.flux_fill",
    "z_image": "raypref.models.families.z_image",
    "flux2_klein": "raypref.models.families.flux2_klein",
    "qwen_image": "raypref.models.families.qwen_image",
}
# Those that read masks of the pairs (`Family.inpaints`): settings are checked before any is loaded.
INPAINTING = frozenset(("sd15_inpaint", "sdxl_inpaint", "flux_fill"))
# Those whose text encoder has a T5 and takes `t5_tokens`, how many it reads.
READ_BY_T5 = frozenset(("sd35m", "flux", "flux_fill"))
# Those whose pipeline reads as many tokens as the longest caption of a batch has, which can move
# the other images: a small Qwen-Image's by up to 6 of 255 levels in bfloat16.
ONE_BY_ONE = frozenset(("z_image", "qwen_image"))


def _known(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"no such model family; there are {', '.join(FAMILIES)}")
    return name


FamilyName = Annotated[str, AfterValidator(_known)]


def batch_alone(name: str, resources: Resources) -> Resources:
    """The resources of who draws with a family's pipeline: no image may feel those beside it."""
    return resources.model_copy(update={"batch": 1}) if name in ONE_BY_ONE else resources


def family(name: str) -> Family:
    """A family by its name.

    Raises:
        InputError: there is none of this name; lists those there are.
    """
    try:
        module = FAMILIES[_known(name)]
    except ValueError as error:
        raise InputError(f"base.family='{name}': {error}") from None
    found: Family = import_module(module).FAMILY
    return found

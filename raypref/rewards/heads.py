"""Linear heads on a CLIP that the user names: any number of rewards, `[rewards.heads.NAME]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PrivateAttr

from raypref.core.config import InputError, Location, Resources, build, setting
from raypref.core.device import DType
from raypref.images.looks import LOOKS
from raypref.rewards.aesthetic import AestheticConfig
from raypref.rewards.registry import REWARDS

HEADS = "heads"  # of `rewards.heads.NAME`
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# A head's name is a column, a ledger and a rule of choice: these are others' names.
_TAKEN = {
    *("id", "key", "prompt", "image", "mask", "embedding", "candidate", "rule", "scores", HEADS),
    *("random", "ensemble", "capo", "caen", "zscore"),
    *("model", "prompt_id", "seed", "raw", "photograph", "kept", "looks_in_hole"),
    *(*LOOKS, "looks", "pixels", "properties"),
}


class HeadConfig(AestheticConfig):
    """A head of your own, on a CLIP of your own. Scores have two decimals; higher is better."""

    label: ClassVar[str] = "head"  # its name stands in tables
    spelt_out: ClassVar[str] = ""
    origin: ClassVar[str] = "whoever trained it"

    model: Location = setting(
        "openai/clip-vit-large-patch14", "hub id or folder of the CLIP model the head belongs to"
    )
    head: Location = setting(
        ...,
        "head of the reward NAME: a file, or OWNER/REPO/FILE on the hub; weight [1, D] and bias "
        "[1] for unit embeddings of D numbers, or the layers of the default aesthetic head",
    )
    dtype: DType = setting("float32", "precision of the CLIP model; the head is float32")
    resources: Resources = Resources(batch=16)
    _name: str = PrivateAttr("NAME")

    @property
    def section(self) -> str:
        """What stands before its keys, for errors."""
        return f"rewards.{HEADS}.{self._name}"


def heads_of(given: Any) -> dict[str, HeadConfig]:
    """The settings of every head, by its name.

    Raises:
        InputError: a name is taken or no name, a key is unknown or a value is wrong; names the key.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"rewards.{HEADS}={given!r} is a value, not a group of settings")
    found = {}
    for name, values in given.items():
        key = f"rewards.{HEADS}.{name}"
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{key}: a name has letters, digits, _ and -, and begins with a letter"
            )
        labels = {kind.label.lower() for kind in REWARDS.values()}
        if name.lower() in {*REWARDS, *labels, *_TAKEN}:
            raise InputError(f"{key}: the name '{name}' is taken; call the head otherwise")
        if not isinstance(values, Mapping | HeadConfig):
            raise InputError(f"{key}={values!r} is a value, not a group of settings")
        if isinstance(values, HeadConfig):
            head = values.model_copy()
        else:
            head = build(HeadConfig, values, prefix=f"{key}.")
        head._name = name
        found[name] = head
    return found

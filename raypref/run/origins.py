"""Where every setting of a run comes from: the lines that `--dry-run` has with a profile."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from raypref.core.config import flatten, layers_of, load
from raypref.core.layers import PROFILE, Layer
from raypref.core.messages import without_secrets
from raypref.run.config import RunConfig

NEEDED = "source.path"  # only the user has it
REQUIRED = "(required)"  # in the place of its value
DEFAULT = "default"


def settings_lines(source: str, overrides: Iterable[str]) -> list[str]:
    """Every setting with where it comes from; none where nobody names a profile.

    Args:
        source: a preset or TOML file.
        overrides: the `key=value` of the command line.

    Raises:
        InputError: unknown preset, file, key or value; a missing `source.path` is listed as such.
    """
    words = [*overrides]
    found = layers_of(RunConfig, source, words)
    if not any(PROFILE in layer.values for layer in found):
        return []
    if not any(_says(layer, NEEDED) for layer in found):
        words.append(f"{NEEDED}={REQUIRED}")
    config = load(RunConfig, source, words)
    settings = flatten(config)
    origins = {key: _origin(key, found, config) for key in settings}
    width = max(map(len, origins.values()))
    said = {
        key: REQUIRED if value == REQUIRED else json.dumps(value, ensure_ascii=False)
        for key, value in settings.items()
    }
    return [
        f"settings of profile {config.profile}, each after where it comes from:",
        *(without_secrets(f"  {origins[key]:<{width}}  {key} = {said[key]}") for key in settings),
    ]


def _origin(key: str, found: Sequence[Layer], config: RunConfig) -> str:
    """The uppermost layer that says a key, or the training that it is taken from."""
    for layer in reversed(found):
        if _says(layer, key):
            return layer.origin
    section, _, rest = key.partition(".")
    name, _, own = rest.partition(".")
    training = config.train.get(name) if section == "train" else None
    if training is None or not training.like or own.split(".")[0] in training.model_fields_set:
        return DEFAULT
    there = own.split(".")[0] in type(config.train[training.like]).model_fields
    return f"as train.{training.like}" if there else DEFAULT


def _says(layer: Layer, key: str) -> bool:
    value: Any = layer.values
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            return False
        value = value[name]
    return True

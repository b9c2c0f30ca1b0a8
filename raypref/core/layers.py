"""What presets and files say: nested values that nobody has checked, one over the other."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from raypref.core.errors import InputError

PRESETS = Path(__file__).parents[1] / "presets"


class Layer(NamedTuple):
    """Nested values, and where they come from."""

    origin: str  # `preset sd15`, `own.toml`
    values: dict[str, Any]


def preset_names() -> list[str]:
    """Names of the presets shipped with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def file_layers(source: str) -> list[Layer]:
    """A preset or TOML file and what it extends, the lowest first.

    Args:
        source: the name of a preset, or the path of a TOML file. A file may begin with
            `extends = "preset or path"`, a path being relative to the file it stands in.

    Raises:
        InputError: no such preset or file, no TOML, or `extends` ends in a cycle.
    """
    return _files(source, ())


def _files(source: str, extended_by: tuple[Path, ...]) -> list[Layer]:
    is_file = source.endswith(".toml")
    beside = extended_by[-1].parent if extended_by else Path()
    path = beside / source if is_file else PRESETS / f"{source}.toml"
    if path in extended_by:
        raise InputError(f"{path}: extends ends in a cycle")
    if not path.is_file():
        known = ", ".join(preset_names())
        raise InputError(f"no preset or TOML file '{source}'; presets are: {known}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    parent = values.pop("extends", "")
    if not isinstance(parent, str):
        raise InputError(f"{path}: extends={parent!r} is not the name of a preset or TOML file")
    below = _files(parent, (*extended_by, path)) if parent else []
    return [*below, Layer(str(path) if is_file else f"preset {source}", values)]


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested values over others, group by group."""
    found = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key.

    Raises:
        InputError: what should be a group on the way is a value.
    """
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"'{key}': '{parent}' is a value, not a group of settings")
        values = child
    values[last] = value

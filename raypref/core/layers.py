"""What presets and files say: nested values that nobody has checked, one over the other."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from raypref.core.errors import InputError

PRESETS = Path(__file__).parents[1] / "presets"
PROFILE = "profile"  # the key of the settings that names one
PROFILES = "profiles"  # the table of a file that holds them


class Layer(NamedTuple):
    """Nested values, and where they come from."""

    origin: str  # `preset sd15`, `own.toml`, `profile released`, `command line`
    values: dict[str, Any]


def preset_names() -> list[str]:
    """Names of the presets shipped with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def file_layers(source: str, *, profile: str = "", default: str | None = None) -> list[Layer]:
    """A preset or TOML file, what it extends and their profile, the lowest first.

    A profile lies over the file that defines it, and under a file that extends this one. A file
    without a word of a profile inherits it; `[profiles] NAME = false` says that it has none.

    Args:
        source: the name of a preset, or the path of a TOML file. A file may begin with
            `extends = "preset or path"`, a path being relative to the file it stands in.
        profile: the name of the profile; empty: the one that the file names.
        default: the profile of files that name none, which is there in any case; None where the
            settings know no profiles.

    Raises:
        InputError: no such preset or file, no TOML, `extends` ends in a cycle, or no such profile.
    """
    files = _files(source, ())
    if default is None:
        return files
    profiles = [_profiles(file) for file in files]
    name, own = default, {}
    for file, defined in zip(files, profiles, strict=True):
        if PROFILE in file.values:
            name, own = file.values[PROFILE], defined
    if not isinstance(name, str):
        raise InputError(f"profile={name!r} in {source}: give the name of a profile")
    if profile and profile != name and own.get(name) == {}:  # as `resolved_profile` leaves it
        raise InputError(
            f"profile={profile}: {source} holds the settings of profile {name}; name the preset or "
            "file that they come from"
        )
    return _with_profile(source, files, profiles, name=profile or name, default=default)


def resolved_profile(name: str) -> dict[str, Any]:
    """What a file of all settings says besides them: that they are those of the profile."""
    return {PROFILES: {name: {}}}


def _profiles(file: Layer) -> dict[str, Any]:
    """Take the profiles out of a file's values: each a table, or False."""
    profiles = file.values.pop(PROFILES, {})
    if not isinstance(profiles, dict):
        raise InputError(f"{file.origin}: profiles={profiles!r}: give tables, [profiles.NAME]")
    for name, values in profiles.items():
        if not isinstance(values, dict) and values is not False:
            raise InputError(
                f"{file.origin}: profiles.{name}={values!r}: give a table of settings; or false, "
                "where the profile of what it extends is none of this file"
            )
    return profiles


def _with_profile(
    source: str, files: list[Layer], profiles: list[dict[str, Any]], *, name: str, default: str
) -> list[Layer]:
    known = {default: True}
    for defined in profiles:
        known |= {each: values is not False for each, values in defined.items()}
    if not known.get(name):
        there = ", ".join(each for each, is_there in known.items() if is_there)
        raise InputError(f"no profile '{name}'; {source} has {there}")
    none_until = max((at for at, own in enumerate(profiles) if own.get(name) is False), default=-1)
    found: list[Layer] = []
    for at, (file, defined) in enumerate(zip(files, profiles, strict=True)):
        found.append(file)
        if at > none_until and defined.get(name):
            found.append(Layer(f"{PROFILE} {name}", defined[name]))
    return found


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

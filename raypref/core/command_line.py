"""The words of a command: flags, settings as `key=value` or `--key value`, and the others."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from raypref.core.config import InputError

SHOWN = 4  # settings named in a message


class Words(NamedTuple):
    """The words of a command by kind, each kind in the order given."""

    bare: list[str]  # neither a flag nor a setting
    overrides: list[str]  # key=value
    flags: frozenset[str]
    options: dict[str, str]  # of the flags that take a value


def sorted_words(
    words: Sequence[str],
    *,
    keys: Collection[str],
    flags: Collection[str],
    options: Mapping[str, Collection[str]],
) -> Words:
    """Sort the words of a command; flags and settings may stand anywhere.

    Args:
        words: those after the command.
        keys: the settings.
        flags: those that take no value, with their dashes.
        options: those that take one, with their dashes, and the values that they take.

    Raises:
        InputError: an unknown flag, or a value that is missing or not among those taken.
    """
    found = Words([], [], frozenset(word for word in words if word in flags), {})
    left = iter(word for word in words if word not in flags)
    for word in left:
        name, equals, value = word.removeprefix("--").partition("=")
        if f"--{name}" in options and word.startswith("--"):
            chosen = value if equals else _next(left, word)
            if chosen not in options[f"--{name}"]:
                raise InputError(f"--{name}={chosen}: it takes {', '.join(options[f'--{name}'])}")
            found.options[f"--{name}"] = chosen
        elif word.startswith("--") and ("." in name or name in keys):
            found.overrides.append(f"{name}={value if equals else _next(left, word)}")
        elif word.startswith("-"):
            sample = value if equals else next(left, "")
            raise InputError(_unknown(word, name, sample, keys, [*flags, *options]))
        elif equals:
            if "." not in name and name not in keys and (near := _ending(keys, name)):
                raise InputError(f"unknown key '{name}'; {_named(near, name, value)}")
            found.overrides.append(word)
        else:
            found.bare.append(word)
    return found


def _next(words: Iterator[str], option: str) -> str:
    value = next(words, None)
    if value is None or value.startswith("--"):
        raise InputError(f"{option} needs a value: {option} VALUE, or {option}=VALUE")
    return value


def _ending(keys: Collection[str], name: str) -> list[str]:
    """The settings whose last word is this one."""
    return [key for key in keys if name and key.endswith(f".{name}")]


def _unknown(word: str, name: str, value: str, keys: Collection[str], flags: Sequence[str]) -> str:
    option = word.partition("=")[0]
    if word.startswith("--") and (near := _ending(keys, name)):
        return f"unknown option {option}; {_named(near, name, value)}"
    close = difflib.get_close_matches(option, flags, n=1)
    nearest = f"; the nearest is {close[0]}" if close else ""
    return f"unknown option {option}{nearest}; see --help"


def _named(keys: Sequence[str], name: str, value: str) -> str:
    """The settings that may have been meant, as they are given."""
    value = "VALUE" if not value or value.startswith("-") or "=" in value else value
    shown = ", ".join(f"{key}={value}" for key in keys[:SHOWN])
    more = f" and {len(keys) - SHOWN} more (--help {name} lists them)" if keys[SHOWN:] else ""
    return f"settings of that name: {shown}{more}"

"""The value of `key=value`: TOML, plain text, or `a,b` where the setting is a list."""

from __future__ import annotations

import tomllib
from typing import Any, get_args, get_origin


def parse_value(text: str, kind: Any) -> Any:
    """What a word of a command line says.

    Args:
        text: after the `=`.
        kind: the setting's type; None where it is unknown.

    Returns:
        The value as TOML has it. Text where it is no TOML or the setting is text
        (`run=2024-05-01`). For a list also `a,b`, and `a` alone.
    """
    if get_origin(kind) is tuple and not text.startswith("["):
        element = get_args(kind)[0]
        words = [word.strip() for word in text.split(",")] if text else []
        return [parse_value(word, element) for word in words]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return text if kind is str and not isinstance(value, str) else value

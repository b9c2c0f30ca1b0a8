"""The lines of `--help`: every key with its type, default and what it does."""

from __future__ import annotations

from typing import Any, get_args

from raypref.core.config import Section, fields_of


def describe(model: type[Section]) -> list[str]:
    """Lines `key  type  default  what it does` for every setting, in order of declaration."""
    rows = []
    for key, field in fields_of(model):
        default = "required" if field.is_required() else _toml_value(field.default)
        kind = _type_name(field.annotation)
        rows.append((key, kind, default, field.description or ""))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return [f"{k:<{widths[0]}}  {t:<{widths[1]}}  {d:<14}  {doc}" for k, t, d, doc in rows]


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    literal = [repr(a) for a in get_args(annotation) if isinstance(a, str)]
    return "|".join(literal) if literal else str(annotation).replace("NoneType", "none")


def _toml_value(value: Any) -> str:
    return '""' if value == "" else str(value)

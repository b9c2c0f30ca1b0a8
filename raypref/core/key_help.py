"""What `--help` says of settings: the first ones, those of a section, those that match words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from raypref.core.config import NAME, Section, fields_of, named_tables

WIDTH = 100  # columns
_INDENT = " " * 4
_PLAIN = {str: "text", int: "integer", float: "number", bool: "true|false"}


def describe(model: type[Section], keys: Iterable[str] | None = None) -> list[str]:
    """A text per setting: the key with type and default, and on the next lines what it does.

    Args:
        model: the settings.
        keys: those wanted, in this order; None: all, in order of declaration.
    """
    fields = dict(fields_of(model))
    return [_described(key, fields[key]) for key in (fields if keys is None else keys)]


def sections(model: type[Section]) -> list[str]:
    """Names of the groups of settings, in order of declaration."""
    return [
        name
        for name, field in model.model_fields.items()
        if named_tables(field)
        or (isinstance(field.annotation, type) and issubclass(field.annotation, Section))
    ]


def found(model: type[Section], words: Sequence[str]) -> list[str]:
    """A text per setting that words ask for, as of `describe`.

    Args:
        model: the settings.
        words: a section, as `perturb`; the name of a training, as `stage2`, or of an objective,
            as `dpo`; else words that stand in the key or the meaning of each setting. Upper and
            lower case are the same.
    """
    if len(words) == 1:
        name, dot, key = words[0].removeprefix("train.").partition(".")
        if name in _trainings(model):
            lines = describe(model, _matching(model, [f"train.{NAME}{dot}{key}"]))
            return [line.replace(f"train.{NAME}.", f"train.{name}.") for line in lines]
        if name in _objectives(model):
            own = fields_of(_objectives(model)[name], f"train.{name}.")
            return [_described(at, f) for at, f in own if at.startswith(f"train.{name}.{key}")]
    return describe(model, _matching(model, words))


def brief(model: type[Section], keys: Sequence[str]) -> list[str]:
    """One line per setting: its key, and what it does as far as it fits."""
    fields, width = dict(fields_of(model)), max(map(len, keys))

    def short(key: str) -> str:
        about = fields[key].description or ""
        return textwrap.shorten(about, WIDTH - width - 4, placeholder=" ...")

    return [f"  {key:<{width}}  {short(key)}" for key in keys]


def _matching(model: type[Section], words: Sequence[str]) -> list[str]:
    """The keys of a section, else those that hold each word: in the key first, then elsewhere."""
    fields = dict(fields_of(model))
    wanted = [word.lower() for word in words]
    if len(wanted) == 1:
        own = [key for key in fields if key.lower().startswith(f"{wanted[0]}.")]
        if own:  # sections within it come last, just before them what only studies need
            studies = {key: (fields[key].description or "").endswith("for studies") for key in own}
            return sorted(own, key=lambda key: (key.count("."), studies[key]))
    by_key = [key for key in fields if all(word in key.lower() for word in wanted)]
    texts = {key: f"{key} {field.description or ''}".lower() for key, field in fields.items()}
    by_text = [key for key, text in texts.items() if all(word in text for word in wanted)]
    return list(dict.fromkeys([*by_key, *by_text]))


def _trainings(model: type[Section]) -> set[str]:
    """Names of the tables that are there by default, as those of the trainings."""
    tables = (f.default for f in model.model_fields.values() if named_tables(f))
    return {name for table in tables if isinstance(table, dict) for name in table}


def _objectives(model: type[Section]) -> Mapping[str, type[Section]]:
    """What the tables that name their kind by a key may be, as the objectives of trainings."""
    marks = filter(None, map(named_tables, model.model_fields.values()))
    return {name: kind for mark in marks if mark.key for name, kind in mark.kinds().items()}


def _described(key: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default {_shown(field.default)}"
    head = f"{key}  ({type_name(field.annotation)}, {default})"
    return "\n".join([_filled(head, first=""), _filled(field.description or "", first=_INDENT)])


def _filled(text: str, *, first: str) -> str:
    return textwrap.fill(
        text,
        WIDTH - 2,  # the help begins each line with two spaces
        initial_indent=first,
        subsequent_indent=_INDENT,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def type_name(annotation: Any) -> str:
    """A type for people: `text`, `number`, `a|b`, `list of integer`."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "|".join(str(word) for word in inner if word != "")
    if origin is tuple:
        return f"list of {type_name(inner[0])}"
    if origin is dict:
        return f"table of {type_name(inner[1])}"
    kinds = [type_name(kind) for kind in inner if kind is not NoneType]
    return " or ".join(kinds) if kinds else str(getattr(annotation, "__name__", annotation))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    if value in ("", {}):
        return "none" if value == {} else "empty"
    return str(value)

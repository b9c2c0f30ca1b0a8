"""A prompt of an evaluation set, and how it stands in a record of any kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from raypref.core.config import InputError

COLUMNS = ("prompt", "Prompt", "caption")  # the first one present is read
# Columns that divide the prompts into groups, in any case; the first one present is the category.
GROUPINGS = ("category", "style", "tag", "challenge")
IDS = ("id", "item_id")


class Prompt(NamedTuple):
    """One prompt of an evaluation set."""

    text: str
    groups: Mapping[str, str] = {}  # read only; by grouping, `{"category": "Animals"}`
    id: str = ""  # its name in the set, where it has one (DPG-Bench)

    @property
    def category(self) -> str:
        """Its group in the first grouping; empty where there is none."""
        return next(iter(self.groups.values()), "")


def of_json(where: str, record: Any) -> Prompt:
    """The prompt of a parsed JSON object.

    Args:
        where: file and line, for errors.
        record: whatever the line holds.

    Raises:
        InputError: it is no object, or has no prompt that is text.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object")
    if not isinstance(record[column(where, record)], str):
        raise InputError(f"{where}: the prompt is not text")
    return of_record(where, record)


def of_record(where: str, record: Mapping[str, Any]) -> Prompt:
    """The prompt of a record whose column of prompts holds text or None.

    Raises:
        InputError: it has no such column.
    """
    by_name = {name.lower(): value for name, value in record.items() if name}
    groups = {kind: str(by_name[kind]) for kind in GROUPINGS if by_name.get(kind)}
    ids = [str(by_name[name]) for name in IDS if by_name.get(name) is not None]
    return Prompt(record[column(where, record)] or "", groups, ids[0] if ids else "")


def column(where: str, names: Iterable[str]) -> str:
    """The column that holds the prompts.

    Raises:
        InputError: there is none; says what there is instead.
    """
    present = [name for name in names if name]
    for name in COLUMNS:
        if name in present:
            return name
    found = ", ".join(" ".join(name.split()) for name in present) or "none"  # one line
    raise InputError(f"{where}: no column {' or '.join(COLUMNS)}; found {found}")

"""HPDv3: a list of records, each with two images of a prompt, the first one being preferred."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from typing import Any

from raypref.core.rows import Row
from raypref.sources.base import Layout, Pair
from raypref.sources.captions import Columns
from raypref.sources.labels import model_of, no_pair
from raypref.sources.reading import lookup
from raypref.sources.records import (
    FORM,
    bad_record,
    files_with,
    image_of,
    misshapen,
    path_of,
    photograph,
    prompt_of,
    records,
    usable,
)
from raypref.sources.store import Store

FILE = "all.json"


def photographs(store: Store, _columns: Columns) -> Iterator[Row]:
    """The images whose model is `real_images`, once each, with their prompt."""
    seen: set[str] = set()
    look = lookup(store)
    file = store.only or FILE
    for number, record in enumerate(records(store, file)):
        if not isinstance(record, dict):
            yield bad_record(file, number)
            continue
        for side in ("1", "2"):
            if record.get(f"model{side}") != "real_images":
                continue
            path = record.get(f"path{side}")
            if not isinstance(path, str):
                yield bad_record(file, number, side)
                continue
            stem = posixpath.splitext(posixpath.basename(path))[0]
            if stem not in seen:  # the same photograph occurs in several records
                seen.add(stem)
                id_ = f"{number:09d}#{stem}"
                yield photograph(look, id_, path_of(path), record.get("prompt"))


def pairs(store: Store) -> Iterator[Pair]:
    """`path1` is preferred to `path2`; the sides are swapped in every second pair.

    Otherwise a reward that always prefers the first would be right.
    """
    for file in files_with(store, FILE, ("path1", "path2")):
        for number, record in enumerate(records(store, file)):
            id_, where = f"{file}#{number:09d}", f"record {number} of {file}"
            try:
                yield usable(_pair(record, number, id_), where)
            except FORM as error:
                yield no_pair(id_, misshapen(where, error))


def _pair(record: Any, number: int, id_: str) -> Pair:
    """A record's pair. KeyError, TypeError, ValueError or AttributeError where it is none."""
    sure = record.get("confidence")
    confidence = None if sure is None else float(sure)
    step = -1 if number % 2 else 1
    first, second = [image_of(record[f"path{side}"]) for side in (1, 2)][::step]
    one, two = [model_of(record.get(f"model{side}")) for side in (1, 2)][::step]
    share = _share(record.get("choice_dist"))
    if share is not None and number % 2:
        share = 1 - share
    label = float(number % 2 == 0)
    return Pair(prompt_of(record), first, second, label, confidence, one, two, share, id=id_)


def _share(votes: Any) -> float | None:
    """Of all votes those for the preferred image, which are the most; None without votes."""
    try:
        counts = [float(count) for count in votes]
    except (TypeError, ValueError):
        return None
    total = sum(counts)
    if min(counts, default=-1) < 0 or not 0 < total < math.inf:
        return None
    return max(counts) / total


LAYOUT = Layout(
    photographs=photographs, pairs=pairs, pairs_in=lambda names: {"path1", "path2"} <= {*names}
)

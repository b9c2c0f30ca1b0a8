"""HPDv3: a list of records, each with two images of a prompt, the first one being preferred."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from raypref.core.rows import Row
from raypref.sources.base import Layout, Pair
from raypref.sources.captions import Columns
from raypref.sources.reading import lookup
from raypref.sources.records import bad_record, image_of, path_of, photograph, prompt_of, records
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
    for number, record in enumerate(records(store, store.only or FILE)):
        confidence = record.get("confidence")
        images = [image_of(record[f"path{side}"]) for side in (1, 2)]
        first, second = images[:: -1 if number % 2 else 1]
        sure = None if confidence is None else float(confidence)
        yield Pair(prompt_of(record), first, second, float(number % 2 == 0), sure)


LAYOUT = Layout(photographs=photographs, pairs=pairs)

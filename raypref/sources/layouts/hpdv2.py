"""HPDv2: records that rank the images of a prompt (test.json) or choose one of two (train.json)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raypref.sources.base import Layout, Pair
from raypref.sources.records import files_with, ranked, records
from raypref.sources.store import Store

FILE = "test.json"


def pairs(store: Store) -> Iterator[Pair]:
    """From `image_path` and `rank`, or from `file_path` and `human_preference`."""
    for file in files_with(store, FILE, ("image_path", "file_path")):
        for number, record in enumerate(records(store, file)):
            told = {"id_": f"{file}#{number:09d}", "where": f"record {number} of {file}"}
            if isinstance(record, dict) and "rank" not in record:
                yield from ranked(_by_choice(record), "file_path", "rank", **told)
            else:
                yield from ranked(record, "image_path", "rank", **told)


def _by_choice(record: dict[str, Any]) -> dict[str, Any]:
    """The record with ranks: the preferred image has the lower one."""
    chosen = record.get("human_preference")
    numbers = isinstance(chosen, list) and all(isinstance(liked, int) for liked in chosen)
    return {**record, "rank": [-liked for liked in chosen or ()] if numbers else None}


LAYOUT = Layout(
    pairs=pairs,
    tied_ranks=True,
    pairs_in=lambda names: (
        {"file_path", "human_preference"} <= {*names}
        or ({"image_path", "rank"} <= {*names} and "overall_rating" not in names)
    ),
)

"""HPDv2: records that rank the images of a prompt (test.json) or choose one of two (train.json)."""

from __future__ import annotations

from collections.abc import Iterator

from raypref.sources.base import Layout, Pair
from raypref.sources.records import ranked, records
from raypref.sources.store import Store

FILE = "test.json"


def pairs(store: Store) -> Iterator[Pair]:
    """From `image_path` and `rank`, or from `file_path` and `human_preference`."""
    for record in records(store, store.only or FILE):
        if "rank" in record:
            yield from ranked(record, "image_path", "rank")
        else:
            preferred = [-int(liked) for liked in record["human_preference"]]
            yield from ranked({**record, "rank": preferred}, "file_path", "rank")


LAYOUT = Layout(pairs=pairs)

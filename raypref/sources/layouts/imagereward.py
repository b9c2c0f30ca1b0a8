"""ImageRewardDB: records that rank the generations of a prompt; the lowest rank is the best."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from raypref.core.rows import Row
from raypref.sources.base import Layout, Pair
from raypref.sources.captions import Columns, as_text
from raypref.sources.reading import lookup
from raypref.sources.records import bad_record, path_of, photograph, ranked, records
from raypref.sources.store import Store


def photographs(store: Store, _columns: Columns) -> Iterator[Row]:
    """Of every record the generations of the best rank, once each."""
    seen: set[str] = set()
    look = lookup(store)
    for file in _files(store):
        for number, record in enumerate(records(store, file)):
            try:
                paths, ranks = record["generations"], record["ranking"]
                best = [path for path, rank in zip(paths, ranks, strict=True) if rank == min(ranks)]
                best = [posixpath.normpath(path) for path in best]
            except (TypeError, KeyError, ValueError):
                yield bad_record(file, number)
                continue
            for path in best:
                if path not in seen:
                    seen.add(path)
                    yield photograph(look, as_text(path), path_of(path), record.get("prompt"))


def pairs(store: Store) -> Iterator[Pair]:
    """Of every record each two generations; equal ranks are no pair."""
    for file in _files(store):
        for record in records(store, file):
            yield from ranked(record, "generations", "ranking")


def _files(store: Store) -> Iterator[str]:
    names = (file.name for file in store.files())
    return (name for name in names if name.endswith(".json") and "/" not in name)


LAYOUT = Layout(photographs=photographs, pairs=pairs)

"""The order in which photographs are taken where no score ranks them: drawn by seed and content."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from raypref.core.rows import seed_of
from raypref.engine.stream import Selection


def in_drawn_order(rows: Selection, seed: int) -> np.ndarray:
    """Positions of the selected rows in the ledger, int64, in the order drawn by the seed.

    Whether a photograph comes before another depends on their keys alone: of fewer, or more
    photographs, those in both lie in the same order.

    Args:
        rows: of a ledger with `key`.
        seed: of the run.
    """
    positions, draws = array("q"), array("q")  # 16 bytes per photograph in memory
    first = 0
    for batch in _batches(rows, ["id", "key"]):
        ids, keys = batch["id"].to_pylist(), batch["key"].to_pylist()
        for position, (id_, key) in enumerate(zip(ids, keys, strict=True), first):
            if id_ not in rows.without:
                positions.append(position)
                draws.append(seed_of(seed, "taken", key))
        first += len(ids)
    return np.array(positions, np.int64)[np.argsort(np.array(draws, np.int64), kind="stable")]


def rows_at(rows: Selection, positions: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """Some rows, in an order.

    Args:
        rows: as for `in_drawn_order`.
        positions: some of those that it returned.
        columns: those read.
    """
    ascending = np.argsort(positions)
    wanted = positions[ascending]
    found, first = [], 0
    schema = pa.schema(map(rows.ledger.schema().field, columns))
    for batch in _batches(rows, columns):
        low, high = np.searchsorted(wanted, (first, first + batch.num_rows))
        found.append(batch.take(pa.array(wanted[low:high] - first)))
        first += batch.num_rows
    table = pa.Table.from_batches(found, schema=schema)
    return table.take(pa.array(np.argsort(ascending)))


def _batches(rows: Selection, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    return rows.ledger.batches(columns, where=rows.where)

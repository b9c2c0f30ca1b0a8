"""Candidates by their number: the ledgers that hold them, and what a worker reads to make one.

A pass makes one row per photograph and number. Its id is `NN/ID`, so that it is done once; in the
ledger of its number the row has the photograph's own id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.core.ledger_group import LedgerGroup
from raypref.core.rows import IMAGE, Row
from raypref.images.decode import as_image, encode_png, open_png

MODEL = "model"  # the column by which a group of ledgers tells its own
IDS_AT_ONCE = 2**16
_TO_MAKE = pa.schema(
    [(name, pa.string()) for name in ("id", "hole", "key", "caption", "prompt")]
    + [("candidate", pa.int32()), (MODEL, pa.string())]
)


def number_name(number: int) -> str:
    """The name of a candidate's ledgers."""
    return f"{number:02d}"


@dataclass(frozen=True)
class GrowingGroup(LedgerGroup):
    """Ledgers that may get more rows when they were complete: of photographs taken later."""

    def commit(self, *, expected: int, counts: Mapping[str, int]) -> None:
        """Declare every ledger complete as it is now."""
        total = self.count()
        assert total == expected, f"{self.path}: {total} rows finished, {expected} expected"
        for ledger in self.ledgers.values():
            ledger.commit(expected=ledger.count(), counts=ledger.reasons())


@dataclass(frozen=True)
class CandidateImages(GrowingGroup):
    """The candidates' images, a ledger per number."""

    def write_part(self, table: pa.Table, name: str | None = None) -> str:
        """Add finished rows of a pass, each to the ledger of its number, under its own id."""
        assert name is None, "these rows come from no other group"
        written = ""
        for number, ledger in self.ledgers.items():
            rows = table.filter(pc.equal(table[MODEL], number))
            if rows.num_rows or not table.num_rows:
                own = [id_.partition("/")[2] for id_ in rows["id"].to_pylist()]
                rows = rows.set_column(0, "id", pa.array(own, pa.string())).drop_columns(MODEL)
                written = f"{number}/{ledger.write_part(rows)}"
        return written

    def done_ids(self) -> set[str]:
        """None: a pass has only rows that are not done. All names would fill the memory."""
        return set()

    def commit(self, *, expected: int, counts: Mapping[str, int]) -> None:
        """Declare every ledger complete as it is now; `expected` is of one pass."""
        for ledger in self.ledgers.values():
            ledger.commit(expected=ledger.count(), counts=ledger.reasons())

    def made(self, ids: pa.Array) -> np.ndarray:
        """Which candidates of some photographs are there, bool [photographs, numbers].

        Args:
            ids: of the photographs.
        """
        found = np.zeros((len(ids), len(self.ledgers)), bool)
        for column, ledger in enumerate(self.ledgers.values()):
            for own in id_chunks(ledger):
                there = pc.index_in(own, value_set=ids).drop_null().to_numpy()
                found[there, column] = True
        return found


def rows_to_make(taken: pa.Table, missing: np.ndarray, *, block_rows: int) -> pa.Table:
    """The rows of a pass that makes candidates.

    Rows of one number follow each other as far as a block reaches: a block is a part of one ledger.

    Args:
        taken: `id`, `key` and `prompt` of the photographs, in order.
        missing: which candidates are to be made, bool [photographs, numbers].
        block_rows: rows of a block.
    """
    blocks = [_TO_MAKE.empty_table()]
    for start in range(0, taken.num_rows, block_rows):
        some = taken.slice(start, block_rows)
        for number, lacking in enumerate(missing[start : start + block_rows].T):
            name = number_name(number)
            own = some if lacking.all() else some.filter(pa.array(lacking))
            columns = {
                "id": pa.array([f"{name}/{id_}" for id_ in own["id"].to_pylist()], pa.string()),
                "hole": own["id"],
                "key": own["key"],
                "caption": own["prompt"],
                "prompt": own["prompt"],
                "candidate": pa.array([number] * own.num_rows, pa.int32()),
                MODEL: pa.array([name] * own.num_rows, pa.string()),
            }
            blocks.append(pa.table(columns, schema=_TO_MAKE))
    return pa.concat_tables(blocks)


def id_chunks(ledger: Ledger) -> Iterator[pa.Array]:
    """The ids of a ledger in the order of its parts, many at a time: a search prepares each time.

    With tens of thousands of ids sought, a search per small part would take longer than reading.
    """
    waiting: list[pa.Array] = []
    for batch in ledger.batches(["id"]):
        waiting.append(batch["id"])
        if sum(map(len, waiting)) >= IDS_AT_ONCE:
            yield pa.concat_arrays(waiting)
            waiting = []
    if waiting:
        yield pa.concat_arrays(waiting)


class FrameHole:
    """Transform: a photograph and its hole, as they are stored.

    Args:
        hole: whether it has one; a candidate may be drawn from the prompt alone.
    """

    name = "frame"
    writes = pa.schema(
        [("prompt", pa.string()), ("image", IMAGE), ("mask", IMAGE), ("saliency", IMAGE)]
    )
    resources = Resources(workers=0, batch=1)

    def __init__(self, *, hole: bool) -> None:
        self.images = {"image": "chosen", **({n: n for n in ("mask", "saliency")} if hole else {})}
        self.reads: tuple[str, ...] = ("key", "caption", *self.images.values())

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns; without a hole two stay null."""
        for row in rows:
            row["prompt"] = row["caption"]
            for column, read in self.images.items():
                png = encode_png(as_image(row[read]))
                row[column] = {"bytes": png, "path": f"{row['key'][:16]}_{column}.png"}


class ReadHole:
    """Transform: photograph and hole of a candidate, read from their ledger.

    Args:
        holes: the ledger, which is complete.
        block_rows: of a pass: that many are read at once.
    """

    name = "read"
    reads: tuple[str, ...] = ("hole",)
    writes = pa.schema([("chosen", pa.binary()), ("saliency", pa.binary())])

    def __init__(self, holes: Ledger, *, block_rows: int) -> None:
        self.holes = holes
        self.resources = Resources(workers=0, batch=block_rows)

    def setup(self) -> None:
        """Nothing yet: a worker that is kept may see the ledger grow."""
        self.part_of: dict[str, str] = {}

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        ids = {row["hole"] for row in rows}
        if not ids <= self.part_of.keys():
            self.part_of = parts_by_id(self.holes)
        found: dict[str, Row] = {}
        for part in sorted({self.part_of[id_] for id_ in ids}):
            where = pc.field("id").isin(pa.array(sorted(ids), pa.string()))
            table = self.holes.part(part, ["id", "image", "saliency"], where=where)
            found |= {row["id"]: row for row in table.to_pylist()}
        for row in rows:
            own = found[row["hole"]]
            row["chosen"] = open_png(own["image"]["bytes"])
            row["saliency"] = open_png(own["saliency"]["bytes"])


def parts_by_id(ledger: Ledger) -> dict[str, str]:
    """In which part of a ledger each row is."""
    return {
        id_: part for part in ledger.parts() for id_ in ledger.part(part, ["id"])["id"].to_pylist()
    }

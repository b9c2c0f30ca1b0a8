"""Reads what `pairs.kind=candidates` left: holes, candidates by number, their scores."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.ledger import Ledger, join
from raypref.curate.select import SOUND

BATCH = 32  # images in memory at a time
PHOTOGRAPH = -1  # stands where a candidate's number stands


class Candidates:
    """The candidates of a run whose pairs are complete.

    Args:
        folder: the run's, local or URI.
    """

    def __init__(self, folder: str) -> None:
        self.holes = Ledger(join(folder, "holes"), {})
        self.scores = Ledger(join(folder, "candidates", "scores"), {})
        self._folder = join(folder, "candidates", "images")

    @cached_property
    def numbers(self) -> list[int]:
        """Numbers of the candidates that have scores, ascending; none where the ledger is gone."""
        found: set[int] = set()
        for batch in self.scores.batches(["candidate"]):
            found.update(pc.unique(batch["candidate"]).to_pylist())
        return sorted(n for n in found if self.images(n).parts())

    @cached_property
    def rewards(self) -> list[str]:
        """Columns of `scores` that hold a score, that of the rule among them."""
        if not self.numbers:
            return []
        return [field.name for field in self.scores.schema() if field.type == pa.float64()]

    @cached_property
    def count(self) -> int:
        """How many holes or prompts have scores."""
        return self.scores.count(pc.field("candidate") == self.numbers[0]) if self.numbers else 0

    def first_keys(self, most: int) -> list[str]:
        """Keys of the first holes or prompts that have scores, in the order drawn by the seed."""
        found: dict[str, None] = {}
        for batch in self.scores.batches(["key"]) if self.numbers else ():
            found.update(dict.fromkeys(batch["key"].to_pylist()))
            if len(found) >= most:
                break
        return list(found)[:most]

    @cached_property
    def have_photographs(self) -> bool:
        """Whether the photographs are still stored, with or without holes."""
        return bool(self.holes.parts())

    def images(self, number: int) -> Ledger:
        """The ledger of the candidates of a number."""
        return Ledger(join(self._folder, f"{number:02d}"), {})

    def scores_of(self, keys: Collection[str]) -> pd.DataFrame:
        """Scores of some holes: `key`, `candidate` and a column per reward."""
        where = pc.field("key").isin(list(keys))
        table = self.scores.table(["key", "candidate", *self.rewards], where=where)
        return table.to_pandas().drop(columns="id")

    def find(self, number: int, keys: Sequence[str]) -> dict[str, list[str]]:
        """Which parts hold the images of some holes: part to keys, in the order of the keys.

        A candidate that was not made is in none. No image is read.

        Args:
            number: of the candidates; `PHOTOGRAPH`: the rows of `holes` instead.
            keys: of the holes.
        """
        order = {key: rank for rank, key in enumerate(keys)}
        where = SOUND & pc.field("key").isin(pa.array(order, pa.string()))
        parts: dict[str, list[str]] = {}
        for batch in self._ledger(number).batches(["key", "__filename"], where=where):
            for key, file in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                parts.setdefault(posixpath.basename(file), []).append(key)
        own = (sorted(found, key=order.__getitem__) for found in parts.values())
        by_first = sorted(zip(parts, own, strict=True), key=lambda each: order[each[1][0]])
        return dict(by_first)

    def rows(self, number: int, found: Mapping[str, list[str]]) -> Iterator[list[dict[str, Any]]]:
        """`key` and `image` (PNG bytes) of some holes' candidates, a few at a time.

        Args:
            number: of the candidates; `PHOTOGRAPH`: the rows of `holes` instead, with `mask`.
            found: of `find`; other parts are not opened.
        """
        columns = ["key", "image", *(["mask"] if number == PHOTOGRAPH else [])]
        for part, keys in found.items():
            where = pc.field("key").isin(pa.array(keys, pa.string()))
            table = self._ledger(number).part(part, columns, where=where)
            for start in range(0, table.num_rows, BATCH):
                yield table.slice(start, BATCH).to_pylist()

    def _ledger(self, number: int) -> Ledger:
        return self.holes if number == PHOTOGRAPH else self.images(number)

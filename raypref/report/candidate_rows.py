"""Reads what `pairs.kind=candidates` left: holes, candidates by number, their scores."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.ledger import Ledger, join

BATCH = 32  # images in memory at a time
MADE = pc.field("image").is_valid()  # a hole that does not fit has none, nor what failed
PHOTOGRAPH = -1  # stands in the place of a candidate's number


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
    def keys(self) -> list[str]:
        """Keys of the holes or prompts that have scores, in the order drawn by the seed."""
        found: dict[str, None] = {}
        for batch in self.scores.batches(["key"]) if self.numbers else ():
            found.update(dict.fromkeys(batch["key"].to_pylist()))
        return list(found)

    @cached_property
    def have_photographs(self) -> bool:
        """Whether the photographs are still stored, with or without holes."""
        return bool(self.holes.parts())

    def images(self, number: int) -> Ledger:
        """The ledger of the candidates of a number."""
        return Ledger(join(self._folder, f"{number:02d}"), {})

    def keys_of(self, number: int) -> set[str]:
        """Keys of the holes that have a candidate of a number; `PHOTOGRAPH`: all holes."""
        ledger = self.holes if number == PHOTOGRAPH else self.images(number)
        batches = ledger.batches(["key"], where=MADE)
        return {key for batch in batches for key in batch["key"].to_pylist()}

    def scores_of(self, keys: Collection[str]) -> pd.DataFrame:
        """Scores of some holes: `key`, `candidate` and a column per reward."""
        where = pc.field("key").isin(list(keys))
        table = self.scores.table(["key", "candidate", *self.rewards], where=where)
        return table.to_pandas().drop(columns="id")

    def rows(self, number: int, keys: Collection[str]) -> Iterator[list[dict[str, Any]]]:
        """`key` and `image` (PNG bytes) of some holes' candidates, a few at a time, as they lie.

        Args:
            number: of the candidates; `PHOTOGRAPH`: the rows of `holes` instead.
            keys: of the holes; what lies after the last of them is not read.
        """
        left = set(keys)
        ledger = self.holes if number == PHOTOGRAPH else self.images(number)
        columns = ["key", "image", *(["mask"] if number == PHOTOGRAPH else [])]
        some: list[dict[str, Any]] = []
        rows = ledger.rows(columns, where=MADE, batch_size=BATCH) if ledger.parts() else ()
        for row in rows:
            if row["key"] in left:
                left.remove(row["key"])
                some.append(row)
            if len(some) == BATCH or not left:
                yield some
                some = []
            if not left:
                return
        if some:
            yield some

"""Which photographs go on: above the mean colorfulness, a visible gap, the best K.

Nothing here sees a pixel, and no more than a few bytes per row stay in memory (paper, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import Section, setting
from raypref.core.ledger import Ledger, Where
from raypref.core.rows import Row

NEAR_BITS = 3
SOUND = pc.field("reject_reason").is_null()


class SelectConfig(Section):
    """The two filters on scores."""

    negligible: bool = setting(True, "drop pairs whose gap is not above min_gap")
    min_gap: float = setting(
        0.02, "smallest PickScore gap between photograph and twin, on the scale of about 20"
    )
    top_k: int = setting(512, "pairs taken, best photographs first; 0 takes all", ge=0)
    order: Literal["pickscore", "random"] = setting(
        "pickscore",
        "which pairs are taken of those that pass: pickscore, those of the best photographs "
        "(paper); random, any, drawn by seed and photograph, so that fewer are among more (the "
        "released code's rows without curation)",
        later=True,
    )

    def passes(self, chosen: float, rejected: float) -> bool:
        """Whether the degradation is visible."""
        return not self.negligible or chosen - rejected > self.min_gap


def ignored_profiles(measured: Ledger) -> int:
    """How many photographs have a colour profile that was ignored.

    None of a ledger that was begun by a version which did not note it.
    """
    if "profile" not in measured.schema().names:
        return 0
    return measured.count(SOUND & pc.field("profile").is_valid())


def repeated_ids(measured: Ledger) -> list[str]:
    """Ids of repeated content (same bytes, same caption), all but the smallest of each.

    Two scans: the first keeps eight bytes per row and finds the keys that may be repeated.
    """
    prefixes = np.fromiter(
        (int(row["key"][:16], 16) for row in measured.rows(["key"], where=SOUND)), np.uint64
    )
    prefixes.sort()
    maybe = set(prefixes[1:][prefixes[1:] == prefixes[:-1]].tolist())
    first: dict[str, str] = {}
    repeated = []
    for row in measured.rows(["id", "key"], where=SOUND) if maybe else ():
        if int(row["key"][:16], 16) in maybe:
            kept = first.setdefault(row["key"], row["id"])
            if kept != row["id"]:
                repeated.append(max(kept, row["id"]))
                first[row["key"]] = min(kept, row["id"])
    return sorted(repeated)


def near_repeated_ids(measured: Ledger, where: Where) -> list[str]:
    """Ids of photographs that look like one with a smaller id.

    Two look alike when their perceptual hashes differ in at most `NEAR_BITS` of 64 bits. Such
    hashes agree in at least one of four bands of 16 bits, so only those that do are compared.
    """
    kept: dict[tuple[int, int], list[int]] = {}
    repeated = []
    hashes = measured.table(["phash"], where=where)  # sorted by id
    for id_, text in zip(hashes["id"].to_pylist(), hashes["phash"].to_pylist(), strict=True):
        value = int(text, 16)
        bands = [(band, value >> 16 * band & 0xFFFF) for band in range(4)]
        alike = (other for band in bands for other in kept.get(band, ()))
        if any((value ^ other).bit_count() <= NEAR_BITS for other in alike):
            repeated.append(id_)
            continue
        for band in bands:
            kept.setdefault(band, []).append(value)
    return repeated


def mean_colorfulness(measured: Ledger, where: Where) -> float:
    """The threshold of the color filter: the mean over the set, order-independent to the bit."""
    values = (row["colorfulness"] for row in measured.rows(["colorfulness"], where=where))
    return math.fsum(values) / max(measured.count(where), 1)


def next_wave(scored: Ledger, size: int, *, below: float) -> pa.Table:
    """The best photographs with a PickScore less than `below`, in rank order.

    At least `size` of them where there are as many: photographs of one score are not parted.
    """
    where = SOUND & (pc.field("pickscore") < below)
    best = best_scores(scored, size, where=where)
    lowest = best.min() if len(best) else below
    where &= pc.field("pickscore") >= pa.scalar(lowest, pa.float32())
    return in_rank_order(scored.table(where=where))


def best_scores(scored: Ledger, size: int, *, where: Where) -> np.ndarray:
    """The `size` largest PickScores, or all where there are fewer; float32, in no order."""
    best = np.empty(0, np.float32)
    for scores in scored.batches(["pickscore"], where=where):
        best = np.concatenate([best, scores["pickscore"].to_numpy()])
        if len(best) > 2 * size:
            best = np.partition(best, -size)[-size:]
    return np.partition(best, -size)[-size:] if len(best) > size else best


def in_pool(scored: Ledger, size: int) -> Where:
    """Which photographs are the `size` best by PickScore, those of one score by id; 0: all."""
    if not size or len(best := best_scores(scored, size, where=SOUND)) < size:
        return SOUND
    score, lowest = pc.field("pickscore"), pa.scalar(best.min(), pa.float32())
    tied = sorted(row["id"] for row in scored.rows(["id"], where=SOUND & (score == lowest)))
    taken = tied[: size - int((best > best.min()).sum())]
    return SOUND & ((score > lowest) | pc.field("id").isin(pa.array(taken, pa.string())))


def in_rank_order(photographs: pa.Table) -> pa.Table:
    """Photographs by PickScore, the best first; those of one score by id."""
    return photographs.sort_by([("pickscore", "descending"), ("id", "ascending")])


class Ranking:
    """Walks photographs in rank order, however their pairs arrive, until enough have passed.

    Attributes:
        ranks: rank 0 .. K-1 of each selected id.
        failed: ids that were reached and dropped, with the reason.
        beyond: ids that passed after K had; only where all are tried.
        rejected: the rows that were reached and rejected, by id.

    Args:
        config: gap and K.
        also: a further condition on a pair, of its color.
        exhaustive: go on after K have passed, only to know how many would.
    """

    def __init__(
        self, config: SelectConfig, *, also: Callable[[Row], bool], exhaustive: bool = False
    ) -> None:
        self.config = config
        self.also = also
        self.exhaustive = exhaustive
        self.ranks: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.beyond: set[str] = set()
        self.rejected: dict[str, Row] = {}
        self._order: Iterator[str] = iter(())
        self._next: str | None = None
        self._waiting: dict[str, Row] = {}

    def begin(self, ids: Iterable[str]) -> None:
        """The ids that come next in rank order; all of those before must have been added."""
        assert self._next is None
        self._order = iter(ids)
        self._next = next(self._order, None)
        self.add(())

    @property
    def complete(self) -> bool:
        """Whether K have passed and nothing more is asked."""
        return self._full and not self.exhaustive

    @property
    def tried(self) -> set[str]:
        """The ids that were reached: no matter how many more pairs were made."""
        return {*self.ranks, *self.failed, *self.rejected}

    @property
    def _full(self) -> bool:
        return 0 < self.config.top_k <= len(self.ranks)

    def add(self, pairs: Iterable[Row]) -> bool:
        """Take finished rows; returns whether the ranking is complete."""
        self._waiting.update((row["id"], row) for row in pairs)
        while self._next in self._waiting and not self.complete:
            self._settle(self._waiting.pop(self._next))
            self._next = next(self._order, None)
        return self.complete

    def _settle(self, row: Row) -> None:
        if row["reject_reason"] is not None:
            self.rejected[row["id"]] = row
        elif not self.config.passes(row["pickscore"], row["pickscore_rejected"]):
            self.failed[row["id"]] = "negligible_degradation"
        elif not self.also(row):
            self.failed[row["id"]] = "less_colorful_than_twin"
        elif self._full:
            self.beyond.add(row["id"])
        else:
            self.ranks[row["id"]] = len(self.ranks)

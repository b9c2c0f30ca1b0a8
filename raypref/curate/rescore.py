"""Exact scores where they decide: photographs in exact rank order from scores of low precision.

All photographs have a quick score q. A photograph's exact score e, in `pickscore.dtype`, is within
a bound b of it. With every photograph of q >= t scored exactly, one that was not has e < t + b: so
those of e >= t + b are the best in exact order, ties included, and nothing else is read to select:
a wave is a run of that order, a gap is the exact score less the twin's, which is never quick. So
the pairs, their ranks and their scores are those of scoring all exactly. Photographs whose pair
was not tried keep their quick score in the table of photographs.

The bound is measured: `MARGIN` times the largest difference seen on a sample of all photographs,
taken by the hash of their bytes, and on every photograph scored exactly since. It is measured again
before a wave is handed out, and more photographs are scored where it has grown. Where that finds
one that belonged to an earlier wave, selection begins again; pairs that were made stay. The bound
is no proof about photographs that were not scored: the margin stands for those.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.ledger import Ledger
from raypref.core.rows import REJECT, Row, Transform
from raypref.curate.select import SOUND, best_scores, in_rank_order
from raypref.engine.stream import StreamConfig, stream
from raypref.rewards.base import Score
from raypref.rewards.pickscore import PickScoreConfig, tf32

log = logging.getLogger(__name__)

QUICK = "pickscore_quick"  # column of the first score beside the exact one
SAMPLE = 1024  # photographs on which the difference is measured, about
MARGIN = 2.0  # bound over the largest difference seen


class QuickScore(Score):
    """Transform: the first score of a photograph, in the precision of `pickscore.quick`.

    One that is no number, as float16 gives where it overflows, becomes infinity: such a photograph
    is scored exactly before any other.
    """

    def __init__(self, config: PickScoreConfig) -> None:
        super().__init__(config.quickly(), columns={"chosen": "pickscore"}, prompt="caption")
        self.tf32 = config.quick == "tf32"

    def compute(self, batch: list[object]) -> list[np.ndarray]:
        """The scores, float32 [B]."""
        if not self.tf32:
            return super().compute(batch)
        with tf32():
            return super().compute(batch)

    def finish(self, rows: list[Row], out: list[np.ndarray]) -> None:
        """Fill the column."""
        for row, score in zip(rows, out[0], strict=False):
            row["pickscore"] = quick_score(score)


def exact_score(config: PickScoreConfig, image: str) -> Score:
    """Transform: the score in `pickscore.dtype` of a photograph (`chosen`) or twin (`rejected`)."""
    columns = {"chosen": "pickscore", "rejected": "pickscore_rejected"}
    return Score(config.exactly(), columns={image: columns[image]}, prompt="caption")


def rescoring_of(
    quick: Ledger,
    exact: Ledger,
    crop: Transform,
    config: PickScoreConfig,
    keep: Sequence[str],
    streaming: StreamConfig,
) -> Rescoring:
    """Rescoring by passes over photographs.

    Args:
        quick: as for `Rescoring`.
        exact: as for `Rescoring`.
        crop: from an entry to its photograph.
        config: which PickScore.
        keep: columns beside the scores.
        streaming: how rows are cut.
    """
    stages, columns = [crop, exact_score(config, "chosen")], [*keep, QUICK, "pickscore"]

    def score(table: pa.Table) -> float:
        return stream(table, stages=stages, ledger=exact, keep=columns, config=streaming).busy

    return Rescoring(quick, exact, score)


def quick_score(score: float) -> float:
    """A first score, infinite where it is no number."""
    return float(score) if math.isfinite(score) else math.inf


class OutOfOrderError(Exception):
    """The bound has grown, and a photograph that belonged to an earlier wave was found."""


class Rescoring:
    """Waves in exact rank order, of photographs scored exactly as far as that takes.

    Args:
        quick: the complete ledger of first scores.
        exact: is filled with the exact ones, in column `pickscore`, beside `QUICK`.
        score: scores photographs exactly into `exact`, those that it lacks, and commits it;
            returns the busy seconds of a worker.
    """

    def __init__(self, quick: Ledger, exact: Ledger, score: Callable[[pa.Table], float]) -> None:
        self.busy = 0.0
        self.quick = quick
        self.exact = exact
        self.score = score
        self._all_from = math.inf  # every photograph of this quick score or more is scored exactly
        self._count = quick.count(SOUND)
        self._sampled = False

    def _sample(self) -> None:
        """Score the sample that the bound is measured on, once."""
        if self._sampled:
            return
        self._sampled, where = True, SOUND
        if self._count > SAMPLE:
            largest = int(SAMPLE / self._count * 2**64)
            where &= pc.field("key") < f"{largest:016x}"  # sha256: as good as drawn
        self._score_exactly(where)

    def bound(self) -> float:
        """How far an exact score is from the first one at most, as far as is known."""
        largest = 0.0
        for batch in self.exact.batches([QUICK, "pickscore"], where=SOUND):
            first, exact = (column.to_numpy().astype(np.float64) for column in batch.columns)
            apart = np.abs(first - exact)[np.isfinite(first)]
            largest = max(largest, apart.max(initial=0.0))
        return MARGIN * largest

    def next_wave(self, size: int, *, below: float, reached: int) -> pa.Table:
        """The best photographs with an exact score less than `below`, in rank order.

        About `size` of them, and at least one where there are any left.

        Args:
            size: photographs that are asked for.
            below: the lowest score of the waves before; infinity at first.
            reached: photographs in the waves before.

        Raises:
            OutOfOrderError: the waves before lacked a photograph; begin with the first again.
        """
        self._sample()
        while True:
            bound, lowest = self.bound(), self._lowest(reached + size)
            while True:
                self._score_all_from(_below(lowest - 2 * bound))
                if (grown := self.bound()) <= bound:
                    break
                bound = grown
            if self.exact.count(SOUND & (pc.field("pickscore") >= _float32(below))) != reached:
                raise OutOfOrderError
            where = SOUND & (pc.field("pickscore") < _float32(below))
            where &= pc.field("pickscore") >= _above(lowest - bound)
            wave = in_rank_order(self.exact.table(where=where))
            if wave.num_rows or lowest == -math.inf:
                return wave.drop_columns([QUICK])
            size *= 2

    def rejected(self) -> dict[str, Row]:
        """The photographs that were dropped while they were scored exactly, by id."""
        rows = self.exact.rows(["id", *REJECT.names], where=~SOUND)
        return {row["id"]: row for row in rows}

    def tell(self) -> None:
        """Log how many photographs were scored exactly, and how far off first scores were."""
        log.info(
            "PickScore: %d of %d photographs scored again, exactly; first scores were off by "
            "%.2g at most",
            self.exact.count(),
            self._count,
            self.bound() / MARGIN,
        )

    def _lowest(self, count: int) -> float:
        """The lowest of so many best first scores; minus infinity where that is all."""
        if count >= self._count:
            return -math.inf
        return float(best_scores(self.quick, count, where=SOUND).min())

    def _score_all_from(self, lowest: pa.Scalar) -> None:
        """Score every photograph of this first score or more."""
        where = SOUND & (pc.field("pickscore") >= lowest)
        if self._all_from < math.inf:  # those above are done
            where &= pc.field("pickscore") < _float32(self._all_from)
        self._score_exactly(where)
        self._all_from = min(self._all_from, lowest.as_py())

    def _score_exactly(self, where: pc.Expression) -> None:
        table = self.quick.table(where=where).drop_columns(REJECT.names)
        names = [QUICK if name == "pickscore" else name for name in table.column_names]
        self.busy += self.score(table.rename_columns(names))


# Scores are compared as float32: a limit is rounded so that no more is left out than it says.


def _float32(value: float) -> pa.Scalar:
    return pa.scalar(value, pa.float32())


def _below(value: float) -> pa.Scalar:
    """A limit no larger."""
    rounded = np.float32(value)
    return _float32(float(rounded if rounded <= value else np.nextafter(rounded, -np.inf)))


def _above(value: float) -> pa.Scalar:
    """A limit no smaller."""
    return _float32(-_below(-value).as_py())

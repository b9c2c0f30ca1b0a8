"""The curation graph on one screen: photographs in, preference pairs out.

    index (-> captions, captioned) -> measured (decode, colorfulness) -> mean
          -> scored (PickScore of the photographs; quick ones are scored again in `rescored`)
          -> waves in rank order (saliency, inpaint, PickScore of the twin) until K have passed
          -> photos, rejects, pairs

A photograph's rank is decided by its own score, or drawn for it (`select.order`), and every filter
looks at one pair only: so the pairs made in that order until K have passed are those that making
all of them would give.
Every input ends exactly once: as a pair, as a photograph not selected, or as a reject.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property, partial

import pyarrow as pa

from raypref.core.ledger import Ledger
from raypref.core.progress import Work
from raypref.core.rows import REJECT, Row, Transform
from raypref.curate.captions import SOURCE
from raypref.curate.cards import Provenance
from raypref.curate.holes import hole_stage
from raypref.curate.order import in_drawn_order, rows_at
from raypref.curate.perturb import Inpaint
from raypref.curate.photographs import FromPhotographs
from raypref.curate.publish import CuratedLedgers, publish
from raypref.curate.rescore import OutOfOrderError, Rescoring, exact_score, rescoring_of
from raypref.curate.scoring import scoring_stages
from raypref.curate.select import (
    Ranking,
    in_pool,
    next_wave,
)
from raypref.curate.transforms import Colorfulness, Crop
from raypref.engine.stream import Selection, StreamConfig, stream

log = logging.getLogger(__name__)

FIRST_WAVE = 8  # times K: enough where one pair in eight passes
LARGEST_WAVE = 1_000_000  # photographs; their rows lie in the driver's memory


class Curation(FromPhotographs):
    """One run's curation: its ledgers and how they are filled.

    Args:
        config: everything that decides the pairs.
        place: where its ledgers lie.
    """

    @cached_property
    def scored(self) -> Ledger:
        """PickScore of the photographs that are colorful enough."""
        c = self.config
        return self._after(
            self.measured,
            "curate/scored",
            color=c.color,
            photographic=c.photographic,
            pickscore=c.pickscore if self.quick else c.pickscore.exactly(),
        )

    @cached_property
    def rescored(self) -> Ledger:
        """Exact scores of the photographs that quick ones leave open."""
        return self._after(self.scored, "curate/rescored")

    @cached_property
    def twins(self) -> Ledger:
        """Photographs with their degraded twins, as far as pairs were made."""
        c = self.config
        made = {"saliency": c.saliency, "holes": c.holes, "perturb": c.perturb, "seed": c.seed}
        return self._after(self.scored, "curate/twins", **made)

    @cached_property
    def pairs(self) -> Ledger:
        """The selected pairs."""
        c = self.config
        pool = {"source.pool_size": c.source.pool_size} if c.source.pool_size else {}
        return self._after(self.twins, "pairs", select=c.select, curate=c.curate, **pool)

    @cached_property
    def photos(self) -> Ledger:
        """What became of every input, for people."""
        return self._after(self.pairs, "photos", curate=self.config.curate)

    @cached_property
    def rejects(self) -> Ledger:
        """The inputs that could not be used, for people."""
        return self._after(self.pairs, "rejects", curate=self.config.curate)

    @property
    def inputs(self) -> Ledger:
        """What became of every input, for people."""
        return self.photos

    @property
    def needs(self) -> tuple[Callable[[], object], ...]:
        """Each raises InputError for a missing model, or for one that does not fit."""
        c = self.config
        return (
            partial(c.holes.check, c.source),
            *((c.saliency.file,) if c.holes.kind == "saliency" else ()),
            partial(c.perturb.check, c.images.size, c.images.bucket_step),
            *(c.pickscore.model_folder, c.pickscore.processor_folder),
            *((c.photographic.folder,) if c.photographic.enabled else ()),
            *((c.captions.folder,) if c.captions.enabled else ()),
        )

    @cached_property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All ledgers of curation, in the order in which they are filled."""
        again = (self.rescored,) if self.quick else ()
        made = (self.index, *self.written, self.measured, self.scored, *again, self.twins)
        return (*made, self.photos, self.rejects, self.pairs)

    @property
    def quick(self) -> bool:
        """Whether first scores are quick; where a pair is made of every photograph, none is."""
        c = self.config
        some = c.select.top_k and not c.curate.exhaustive and c.select.order == "pickscore"
        return bool(some) and c.pickscore.quick != "off"

    def run(self, streaming: StreamConfig) -> Work:
        """Curate; skips and resumes what is done.

        Raises:
            InputError: not one pair was left; says where the photographs were lost.
        """
        c = self.config
        scoring = scoring_stages(c.source, c.images, c.photographic, c.pickscore, quick=self.quick)
        front = self.measure(streaming)
        busy = front.busy
        busy += stream(
            front.retained,
            stages=scoring,
            ledger=self.scored,
            keep=[*self.entry, "key", "colorfulness", "pickscore"],
            config=streaming,
        ).busy
        ranking, made = self.make_twins(streaming)
        counts = self.publish(ranking, front.repeated)
        log.info("pairs: %d of %d inputs", counts["pair"], counts.total())
        return Work(counts.total(), "inputs", busy + made)

    def make_twins(self, streaming: StreamConfig) -> tuple[Ranking, float]:
        """Make pairs in the order of selection, in waves, until K have passed or the pool ends.

        A wave is sized by the pass rate so far.

        Returns:
            The ranking and the busy seconds of a worker.
        """
        numbers = ["pickscore", "pickscore_rejected", "colorfulness", "colorfulness_rejected"]
        ranking, rescoring = self._ranking(), self._rescoring(streaming)
        pool = self.config.source.pool_size
        next_some = self._waves()
        written = [SOURCE] if self.config.captions.enabled else []
        seen: set[str] = set()

        def enough(part: str) -> bool:
            seen.add(part)
            return ranking.add(self.twins.part(part, ["id", *numbers, *REJECT.names]).to_pylist())

        busy, reached, below = 0.0, 0, math.inf
        while True:
            for part in set(self.twins.parts()) - seen:  # what an earlier run made
                enough(part)
            size = self._wave_size(ranking, reached)
            try:
                if rescoring is None:
                    wave = next_some(size, below, reached)
                else:
                    wave = rescoring.next_wave(size, below=below, reached=reached)
            except OutOfOrderError:  # begin again; what was made is not made again
                ranking, reached, below = self._ranking(), 0, math.inf
                seen.clear()
                continue
            if pool:
                wave = wave.slice(0, pool - reached)
            ranking.begin(wave["id"].to_pylist())
            busy += stream(
                wave.slice(0, 0 if ranking.complete else None).drop_columns(REJECT.names),
                stages=self.twin_stages(),
                ledger=self.twins,
                keep=["key", "caption", "chosen", "rejected", "mask", *numbers, *written],
                config=streaming,
                enough=enough,
            ).busy
            for part in set(self.twins.parts()) - seen:  # a run that was killed wrote to its last
                enough(part)
            reached += wave.num_rows
            if ranking.complete or wave.num_rows == 0 or reached == pool:
                if rescoring is not None:
                    rescoring.tell()
                    ranking.rejected |= rescoring.rejected()
                    busy += rescoring.busy
                return ranking, busy
            below = wave["pickscore"][-1].as_py()

    def _ranking(self) -> Ranking:
        c = self.config
        return Ranking(c.select, also=self._colorful_enough, exhaustive=c.curate.exhaustive)

    def _waves(self) -> Callable[[int, float, int], pa.Table]:
        """What gives so many more photographs in `select.order`, with exact first scores.

        It takes how many, the lowest score of the waves before, and how many those held.
        """
        c = self.config
        if c.select.order == "pickscore":
            return lambda size, below, reached: next_wave(self.scored, size, below=below)
        able = Selection(self.scored, in_pool(self.scored, c.source.pool_size))
        drawn, names = in_drawn_order(able, c.seed), self.scored.schema().names
        return lambda size, below, reached: rows_at(able, drawn[reached : reached + size], names)

    def _rescoring(self, streaming: StreamConfig) -> Rescoring | None:
        """What scores exactly where first scores are quick."""
        if not self.quick:
            return None
        first = Crop(self.config.source, self.config.images)
        keep = [*self.entry, "key", "colorfulness"]
        scorer = self.config.pickscore
        return rescoring_of(self.scored, self.rescored, first, scorer, keep, streaming)

    def twin_stages(self) -> list[Transform]:
        """From a ranked photograph to a scored pair."""
        c = self.config
        return [
            Crop(c.source, c.images),
            hole_stage(c.holes, c.saliency, c.seed, source=c.source, images=c.images),
            Inpaint(c.perturb, seed=c.seed),
            exact_score(c.pickscore, "rejected"),
            Colorfulness("rejected", "colorfulness_rejected"),
        ]

    def _wave_size(self, ranking: Ranking, reached: int) -> int:
        """About how many more photographs it takes."""
        k, passed = self.config.select.top_k, len(ranking.ranks)
        if self.config.curate.exhaustive or not k:
            return LARGEST_WAVE
        rate = max(passed, 1) / reached if reached else 1 / FIRST_WAVE
        return min(math.ceil((k - passed) / rate), LARGEST_WAVE)

    def _colorful_enough(self, row: Row) -> bool:
        color = self.config.color
        if not color.enabled or color.variant == "paper":
            return True
        return bool(row["colorfulness"] > row["colorfulness_rejected"])

    def publish(self, ranking: Ranking, repeated: Mapping[str, str]) -> Counter[str]:
        """Write `photos`, `rejects` and `pairs`; how many inputs ended for each reason.

        Args:
            ranking: what became of the pairs that were made.
            repeated: ids of repeated content and the reason it gives.
        """
        exact = self.rescored if self.quick else None
        return publish(
            CuratedLedgers(self.measured, self.scored, self.twins, exact),
            ranking,
            repeated,
            photos=self.photos,
            rejects=self.rejects,
            pairs=self.pairs,
            origin=Provenance(
                self.config.source.license,
                self.config.perturb.kind,
                self.config.perturb.model,
                self.config.pickscore.model,
                self.config.captions.name if self.config.captions.enabled else "",
            ),
        )

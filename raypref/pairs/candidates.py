"""Pairs of candidates: several paintings of each photograph's hole, the best against the worst.

    index .. measured (as for twins) -> holes (in an order drawn by the seed, until `pairs.limit`)
          -> candidates/images/NN (a ledger per number) -> candidates/rewards/NN/REWARD
          -> candidates/scores (what the rule says) -> photos, rejects, pairs

Follow-Your-Preference (Shen et al. 2025, arXiv 2509.23082). A number's images do not know how many
there are, a reward's scores do not know of other rewards, and the rule runs no model: raising
`candidates.count` or `pairs.limit`, or adding a reward, computes what is new alone. With
`perturb.kind=text2image` candidates are drawn from the captions alone: there is no hole.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import InputError, results_of
from raypref.core.ledger import Ledger, Place, placed
from raypref.core.progress import Work, counted
from raypref.core.rows import REJECT, Transform
from raypref.curate.holes import hole_stage
from raypref.curate.order import in_drawn_order, rows_at
from raypref.curate.perturb import Inpaint
from raypref.curate.photographic import Photographic
from raypref.curate.photographs import FromPhotographs
from raypref.curate.select import SOUND
from raypref.curate.transforms import Crop
from raypref.engine.stream import Selection, StreamConfig, stream, stream_branches
from raypref.engine.worker import Branch
from raypref.pairs.chosen import CandidateTables, Ends, choose_pairs, publish_candidates
from raypref.pairs.config import PairingConfig
from raypref.pairs.numbered import (
    MODEL,
    CandidateImages,
    FrameHole,
    GrowingGroup,
    ReadHole,
    number_name,
    rows_to_make,
)
from raypref.rewards.base import Score
from raypref.rewards.passes import Measure, in_one_pass, passes
from raypref.rewards.rewards import reward

log = logging.getLogger(__name__)

MOST_ROWS = 1_000_000  # of a pass; they lie in the driver's memory
# What is known of photographs that were reached.
ENDED = pa.schema([(name, pa.string()) for name in ("id", "key", "prompt", *REJECT.names)])


class CandidatePairs(FromPhotographs):
    """One run's pairs of candidates: its ledgers and how they are filled.

    Args:
        config: everything that decides the pairs.
        place: where its ledgers lie.
    """

    config: PairingConfig

    def __init__(self, config: PairingConfig, *, place: Place) -> None:
        super().__init__(config, place=place)

    @property
    def in_holes(self) -> bool:
        """Whether candidates fill a hole; else they are drawn from the caption alone."""
        return self.config.perturb.kind != "text2image"

    @cached_property
    def holes(self) -> Ledger:
        """The photographs and their holes, as far as they were reached."""
        c = self.config
        found = {"saliency": c.saliency, "holes": c.holes} if self.in_holes else {}
        parts = {"color": c.color, "photographic": c.photographic, **found, "seed": c.seed}
        return self._after(self.measured, "holes", **parts)

    @cached_property
    def images(self) -> CandidateImages:
        """The candidates, a ledger per number: `id`, `key`, `prompt`, `image` (PNG bytes)."""
        c = self.config
        ledgers = {
            number_name(number): self._after(
                self.holes,
                f"candidates/images/{number_name(number)}",
                perturb=c.perturb,
                candidate=number,
            )
            for number in range(c.candidates.count)
        }
        path = self._after(self.holes, "candidates/images", perturb=c.perturb).path
        return CandidateImages(path, ledgers=ledgers)

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """The rewards that score the candidates, by name."""
        c, found = self.config, {}
        for name in c.candidates.rewards:
            own = reward(name, c.pickscore.exactly(), c.rewards)
            stage = Score(own, columns={"image": name}, prompt="prompt")
            found[name] = Measure(stage, {name: own}, [name], own.runtime_env)
        return found

    def scored(self, name: str) -> GrowingGroup:
        """What a reward says of the candidates, a ledger per number: `id`, `key`, the score."""
        settings = self.measures[name].settings
        ledgers = {
            number: placed(
                self.place,
                f"candidates/rewards/{number}/{name}",
                results_of({"images": images.fingerprint, **settings}),
            )
            for number, images in self.images.ledgers.items()
        }
        return GrowingGroup(f"{self.images.path}-{name}", ledgers=ledgers)

    @cached_property
    def scores(self) -> Ledger:
        """One row per photograph taken and candidate: the rewards' scores, and the rule's."""
        c = self.config
        settings: dict[str, object] = {}
        for measure in self.measures.values():
            settings |= measure.settings
        return self._after(
            self.holes,
            "candidates/scores",
            perturb=c.perturb,
            candidates=c.candidates,
            choice=c.choice,
            **settings,
            **{"pairs.limit": c.pairs.limit},
        )

    @cached_property
    def pairs(self) -> Ledger:
        """The pairs, in the order in which photographs were taken."""
        return self._after(self.scores, "pairs")

    @cached_property
    def photos(self) -> Ledger:
        """What became of every photograph, for people."""
        return self._after(self.pairs, "photos")

    @cached_property
    def rejects(self) -> Ledger:
        """The photographs that could not be used, for people."""
        return self._after(self.pairs, "rejects")

    @property
    def inputs(self) -> Ledger:
        """What became of every photograph, for people."""
        return self.photos

    @property
    def needs(self) -> tuple[Callable[[], object], ...]:
        """Each raises InputError for a missing model, or for one that does not fit."""
        c = self.config
        found: tuple[Callable[[], object], ...] = ()
        if self.in_holes:
            saliency = (c.saliency.file,) if c.holes.kind == "saliency" else ()
            found = (partial(c.holes.check, c.source), *saliency)
        return (
            *found,
            partial(c.perturb.check, c.images.size, c.images.bucket_step if self.in_holes else 0),
            *(reward(name, c.pickscore, c.rewards).check for name in c.candidates.rewards),
            *((c.photographic.folder,) if c.photographic.enabled else ()),
            *((c.captions.folder,) if c.captions.enabled else ()),
        )

    @cached_property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All ledgers, in the order in which they are filled."""
        groups = [self.images, *map(self.scored, self.measures)]
        made = (own for group in groups for own in group.ledgers.values())
        begun = (self.index, *self.written, self.measured, self.holes)
        return (*begun, *made, self.scores, self.photos, self.rejects, self.pairs)

    @property
    def tables(self) -> CandidateTables:
        """What the pairs are read from, and what is written for people."""
        read = self.holes, self.images
        return CandidateTables(*read, self.scores, self.photos, self.rejects, self.pairs)

    def run(self, streaming: StreamConfig) -> Work:
        """Make the pairs; skips and resumes what is done.

        Raises:
            InputError: not one pair was left; says where the photographs were lost.
        """
        front = self.measure(streaming)
        ends, found = self.find_holes(front.retained, streaming)
        if not ends.taken.num_rows:
            lost = Counter(ends.dropped["reject_reason"].to_pylist())
            told = ", ".join(f"{count} {reason}" for reason, count in lost.items())
            raise InputError(f"no pair was left: no photograph has a hole; {told}")
        made = self.make(ends.taken, streaming)
        scored = self.score(streaming)
        decided = choose_pairs(
            ends.taken,
            [self.scored(name) for name in self.measures],
            tuple(self.measures),
            self.config,
        )
        counts = publish_candidates(
            decided,
            ends,
            front.repeated,
            front.retained,
            CandidateTables(
                self.holes, self.images, self.scores, self.photos, self.rejects, self.pairs
            ),
            self.config,
            hole=self.in_holes,
        )
        log.info("pairs: %d of %d inputs", counts["pair"], counts.total())
        return Work(counts.total(), "inputs", front.busy + found + made + scored)

    def find_holes(self, retained: Selection, streaming: StreamConfig) -> tuple[Ends, float]:
        """Take photographs in the drawn order until as many as are asked for have a hole.

        Args:
            retained: the photographs that can be taken.
            streaming: how rows are cut into blocks.

        Returns:
            What was taken and dropped, and the seconds that workers computed.
        """
        c, limit = self.config, self.config.pairs.limit
        order = in_drawn_order(retained, c.seed)
        columns = ["id", "key", *self.entry]
        taken = dropped = ENDED.empty_table()
        busy, reached = 0.0, 0
        while True:
            size = MOST_ROWS
            if limit:
                rate = max(1, len(taken)) / reached if reached else 1.0
                size = min(size, math.ceil((limit - len(taken)) / rate))
            wave = rows_at(retained, order[reached : reached + size], columns)
            busy += stream(
                wave,
                stages=self.hole_stages(),
                ledger=self.holes,
                keep=["key", *FrameHole.writes.names],
                config=streaming,
            ).busy
            known = pa.schema(map(self.holes.schema().field, ENDED.names))
            ended = pa.Table.from_batches(self.holes.batches(ENDED.names), schema=known).cast(ENDED)
            own = ended.take(pc.index_in(wave["id"], value_set=ended["id"].combine_chunks()))
            sound = pc.is_null(own["reject_reason"]).to_numpy()
            if limit and sound.sum() >= limit - len(taken):  # what comes after is beyond the limit
                reach = int(np.nonzero(sound)[0][limit - len(taken) - 1]) + 1
                own, sound = own.slice(0, reach), sound[:reach]
            taken = pa.concat_tables([taken, own.filter(pa.array(sound))])
            dropped = pa.concat_tables([dropped, own.filter(pa.array(~sound))])
            reached += wave.num_rows
            if len(taken) == limit or reached >= len(order):
                break
        log.info("holes: %s taken, %d dropped", counted(len(taken), "photograph"), len(dropped))
        return Ends(taken.select(["id", "key", "prompt"]), dropped), busy

    def hole_stages(self) -> list[Transform]:
        """From an entry to a photograph and its hole."""
        c = self.config
        hole = [hole_stage(c.holes, c.saliency, c.seed, source=c.source, images=c.images)]
        return [
            Crop(c.source, c.images),
            *([Photographic(c.photographic)] if c.photographic.enabled else []),
            *(hole if self.in_holes else []),
            FrameHole(hole=self.in_holes),
        ]

    def make(self, taken: pa.Table, streaming: StreamConfig) -> float:
        """Make missing candidates; returns the seconds that workers computed."""
        count, busy = self.config.candidates.count, 0.0
        # A wave begins where a block does.
        size = max(1, MOST_ROWS // count // streaming.block_rows) * streaming.block_rows
        for start in range(0, taken.num_rows, size):
            some = taken.slice(start, size)
            made = self.images.made(some["id"].combine_chunks())
            if done := int(made.sum()):
                log.info("candidates: %d of %d were made before", done, made.size)
            busy += stream_branches(
                rows_to_make(some, ~made, block_rows=streaming.block_rows),
                label="candidates",
                stages=self.candidate_stages(streaming),
                branches=[Branch([], self.images, [MODEL, "key", "prompt", "image"])],
                config=streaming,
            ).busy
        return busy

    def candidate_stages(self, streaming: StreamConfig) -> list[Transform]:
        """From a photograph's id and a number to a candidate."""
        c = self.config
        side = None if self.in_holes else c.images.size
        paint = Inpaint(c.perturb, seed=c.seed, column="image", numbered=True, side=side)
        read = [ReadHole(self.holes, block_rows=streaming.block_rows)] if self.in_holes else []
        return [*read, paint]

    def score(self, streaming: StreamConfig) -> float:
        """Compute missing scores; returns the seconds that workers computed."""
        busy = 0.0
        # Usually there is one group: all numbers lack the same rewards.
        groups: dict[tuple[str, ...], dict[str, Measure]] = {}
        for name, measure in self.measures.items():
            if lacking := tuple(n for n in self.images.ledgers if self._lacks(name, n)):
                groups.setdefault(lacking, {})[name] = measure
        for lacking, chosen in groups.items():
            for together in passes(chosen):
                busy += self._score(together, lacking, streaming)
        return busy

    def _lacks(self, name: str, number: str) -> bool:
        """Whether a reward has not scored all candidates of a number."""
        images, scores = self.images.ledgers[number], self.scored(name).ledgers[number]
        there, known = {*images.parts()}, {*scores.parts()}
        if not known <= there:
            scores.clear()  # of images that were stored in another way
        return scores.state() != "complete" or there != known

    def _score(
        self, together: Mapping[str, Measure], lacking: Sequence[str], streaming: StreamConfig
    ) -> float:
        common, own = in_one_pass(together, column="image")
        images = GrowingGroup(self.images.path, ledgers=_some(self.images.ledgers, lacking))
        return stream_branches(
            Selection(images, SOUND, columns=("id", "key", "prompt", "image")),
            label=f"candidates, {', '.join(together)}",
            stages=common,
            branches=[
                Branch(
                    own[name],
                    GrowingGroup(
                        f"{self.images.path}-{name}",
                        ledgers=_some(self.scored(name).ledgers, lacking),
                    ),
                    ["key", *measure.columns],
                )
                for name, measure in together.items()
            ],
            config=streaming,
            runtime_env=next(iter(together.values())).runtime_env,
        ).busy


def _some(ledgers: Mapping[str, Ledger], numbers: Sequence[str]) -> dict[str, Ledger]:
    return {number: ledgers[number] for number in numbers}

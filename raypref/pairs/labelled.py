"""Pairs that people labelled, in one pass: labels in, chosen and rejected images out.

    index (what the source lists) -> decided (who is chosen, gap), arena (the generators)
          -> loaded (read, decoded, cropped) and, in the same pass, pairs
          -> labels, rejects

Every label ends exactly once: as a pair, as a tie, without a label, with too little confidence,
beyond the limit, or dropped with a reason. Single labelled images go the same way.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from raypref.core.config import InputError, results_of
from raypref.core.ledger import Ledger, Place, part_name, placed
from raypref.core.messages import without_secrets
from raypref.core.progress import Work, counted, waiting
from raypref.core.rows import REJECT, Row
from raypref.curate.publish import REJECTS, LargeParts, with_features
from raypref.curate.select import SOUND, ignored_profiles
from raypref.engine.stream import Selection, StreamConfig, stream_branches
from raypref.engine.worker import Branch, Sound
from raypref.pairs.cards import write_label_cards
from raypref.pairs.columns import COLUMNS, OUTCOMES
from raypref.pairs.config import PairingConfig
from raypref.pairs.decide import DROPPED, TAKEN, decide, outcomes
from raypref.pairs.listing import Listed, file_of, survey, write_labels
from raypref.pairs.load import LoadImages
from raypref.sources.remembered import remembered

log = logging.getLogger(__name__)

FACTS = ("key", "profile")  # of what was loaded, beside the images
PAIRS_A_PART = 64


class LabelledPairs:
    """One run's labelled pairs, or single labelled images: its ledgers and how they are filled.

    Args:
        config: everything that decides the pairs.
        place: where its ledgers lie.
    """

    def __init__(self, config: PairingConfig, *, place: Place) -> None:
        self.config = config
        self.place = place
        self.needs: tuple[Callable[[], object], ...] = ()  # no model

    @cached_property
    def listed(self) -> Listed:
        """What the source lists; reads all labels, once."""
        c = self.config
        key = "labels", c.source, c.pairs.kind, c.pairs.images
        return remembered(key, lambda: survey(c))

    @cached_property
    def index(self) -> Ledger:
        """What the source lists."""
        c = self.config
        parts = {"source.digest": self.listed.digest, "source": c.source}
        return self._ledger("curate/index", {**parts, "pairs.kind": c.pairs.kind})

    @cached_property
    def decided(self) -> Ledger:
        """The labels that decide, with their gaps."""
        return self._after(self.index, "curate/decided", pairs=self.config.pairs, seed=self._seed)

    @cached_property
    def arena(self) -> Ledger | None:
        """The capabilities of the generators; None where none is named, or gaps are given."""
        c = self.config.pairs
        if c.kind != "labelled" or c.gap != "arena" or not self.listed.counts["named"]:
            return None
        return self._after(self.index, "arena", pairs=c, seed=self._seed)

    @cached_property
    def loaded(self) -> Ledger:
        """What became of each label that decides; its images are in the pairs."""
        return self._after(self.decided, "curate/loaded", images=self.config.images)

    @cached_property
    def pairs(self) -> Ledger:
        """The pairs, in the order of the source."""
        return self._after(self.loaded, "pairs")

    @cached_property
    def inputs(self) -> Ledger:
        """What became of every label, for people."""
        return self._after(self.loaded, "labels")

    @cached_property
    def rejects(self) -> Ledger:
        """The labels that could not be used, for people."""
        return self._after(self.loaded, "rejects")

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All ledgers, in the order in which they are filled."""
        arena = () if self.arena is None else (self.arena,)
        made = (self.index, *arena, self.decided, self.loaded)
        return (*made, self.inputs, self.rejects, self.pairs)

    @property
    def _seed(self) -> int:
        return self.config.seed

    def _ledger(self, name: str, parts: dict[str, object]) -> Ledger:
        return placed(self.place, name, results_of(parts))

    def _after(self, before: Ledger, name: str, **sections: object) -> Ledger:
        return self._ledger(name, {**before.settings, **sections})

    def entries(self) -> int:
        """How many labels the source lists."""
        return self.listed.counts["entries"]

    def described(self) -> str:
        """What the source holds, in a line for people."""
        counts = self.listed.counts
        told = [counted(counts["entries"], "label")]
        told += [counted(counts["ties"], "tie")] if counts["ties"] else []
        for what, words in (("unlabelled", "without a label"), ("unusable", "unusable")):
            told += [f"{counts[what]:,} {words}"] if counts[what] else []
        named = "with named generators" if counts["named"] == counts["entries"] else ""
        if not named and counts["named"]:
            named = f"{counts['named']:,} with named generators"
        told += [named] if named else []
        return f"{', '.join(told)}, in {without_secrets(self.config.source.path)}"

    def run(self, streaming: StreamConfig) -> Work:
        """Make the pairs; skips and resumes what is done.

        Raises:
            InputError: not one pair was left; says where the labels were lost.
        """
        if self.index.state() != "complete":
            with waiting("labels: listing them"):
                write_labels(self.config, self.index)
        fitted = self.arena is None or self.arena.state() == "complete"
        if self.decided.state() != "complete" or not fitted:
            with waiting("labels: deciding, fitting the gaps"):
                decide(self.index, self.config, decided=self.decided, arena=self.arena)
        busy = 0.0
        if self.loaded.parts() and self.pairs.count() < self.loaded.count(SOUND):
            log.warning("%s: pairs are missing; the images are loaded again", self.pairs.path)
            self.loaded.clear()
        if self.loaded.state() != "complete":
            self.pairs.begin()
            busy = stream_branches(
                _in_pieces(self.decided),
                label="pairs",
                stages=[LoadImages(self.config)],
                branches=[Branch([], self.loaded, FACTS, Sound(self.pairs, self._schema))],
                config=streaming,
            ).busy
        if count := ignored_profiles(self.loaded):
            log.warning(
                "%s with a colour profile other than sRGB, which is ignored: colours are off; "
                "images.profiles=convert converts them",
                counted(count, "label"),
            )
        counts = self.publish()
        log.info("pairs: %d of %d labels", counts["pair"], counts.total())
        return Work(counts.total(), "labels", busy)

    @property
    def _schema(self) -> pa.Schema:
        return with_features(COLUMNS[self.config.pairs.kind])

    def publish(self) -> Counter[str]:
        """Write `labels` and `rejects`, commit them and the pairs; how many ended for each reason.

        Raises:
            InputError: not one pair was left; says where the labels were lost.
        """
        self.inputs.begin()
        self.rejects.begin()
        counts: Counter[str] = Counter()
        tables = LargeParts(self.inputs, OUTCOMES[self.config.pairs.kind])
        dropped = LargeParts(self.rejects, REJECTS)
        for rows in _some(self._ended()):
            counts.update(row["reason"] or row["status"] for row in rows)
            tables.add(rows)
            dropped.add([row for row in rows if row["status"] == DROPPED])
        total, unusable = tables.close(), dropped.close()
        if not counts["pair"]:
            raise InputError(
                "no pair was left: " + ", ".join(f"{n} {reason}" for reason, n in counts.items())
            )
        write_label_cards(
            self.config, counts, labels=self.inputs, rejects=self.rejects, pairs=self.pairs
        )
        self.inputs.commit(expected=total, counts=counts)
        self.rejects.commit(expected=unusable, counts=counts)
        self.pairs.commit(expected=counts["pair"], counts=counts)
        return counts

    def _ended(self) -> Iterator[Row]:
        """What became of each label; index and loaded labels lie in one order."""
        loaded = self.loaded.rows(["id", "key", *REJECT.names], batch_size=1024)
        for row, reason in outcomes(self.index.rows(batch_size=1024), self.config.pairs):
            found: Row = {name: row[name] for name in row if name not in ("problem", "gap")}
            found |= {side: file_of(row[side]) for side in ("first", "second")}
            found |= {"uri": found["first"], "stage": "list", "status": "not_selected"}
            if reason == DROPPED:
                word, _, message = row["problem"].partition(": ")
                yield found | {"status": DROPPED, "reason": word, "message": message}
            elif reason != TAKEN:
                yield found | {"reason": reason}
            else:
                own = next(loaded)
                assert own["id"] == row["id"], f"{own['id']} was loaded where {row['id']} was due"
                if own["reject_reason"] is None:
                    yield found | {"status": "pair", "key": own["key"], "reason": None}
                else:
                    stage, word, message = (own[name] for name in REJECT.names)
                    told = {"stage": stage, "reason": word, "message": message}
                    yield found | told | {"status": DROPPED}


@dataclass(frozen=True)
class _Pieces(Selection):
    """A selection whose blocks are pieces of the ledger's parts."""

    pieces: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # name -> part, first row

    def parts(self) -> list[str]:
        """The names of the pieces."""
        return list(self.pieces)

    def part(self, name: str) -> pa.Table:
        """The rows of one piece."""
        part, first = self.pieces[name]
        return super().part(part).slice(first, PAIRS_A_PART)


def _in_pieces(decided: Ledger) -> _Pieces:
    """Its rows, in pieces whose images make one part of the pairs."""
    places = [
        (part, first)
        for part in decided.parts()
        for first in range(0, max(1, decided.part(part, ["id"]).num_rows), PAIRS_A_PART)
    ]
    names = [part_name(f"{number:08d}") for number in range(len(places))]
    return _Pieces(decided, pieces=dict(zip(names, places, strict=True)))


def _some(rows: Iterator[Row]) -> Iterator[list[Row]]:
    some: list[Row] = []
    for row in rows:
        some.append(row)
        if len(some) == 4096:
            yield some
            some = []
    yield some

"""What all pairs of photographs begin with: listed, captioned, measured, repeated ones left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import pyarrow.compute as pc

from raypref.core.config import results_of
from raypref.core.ledger import Ledger, Place, placed
from raypref.core.messages import without_secrets
from raypref.core.progress import counted
from raypref.core.rows import INDEX, MASKS
from raypref.curate.captions import GIVEN, SOURCE, write_captions
from raypref.curate.config import CurateConfig
from raypref.curate.select import (
    SOUND,
    ignored_profiles,
    mean_colorfulness,
    near_repeated_ids,
    repeated_ids,
)
from raypref.curate.transforms import MeasurePhotograph
from raypref.engine.stream import Selection, StreamConfig, stream
from raypref.sources.found import findings
from raypref.sources.index import counts_of, digest, gives_masks, write_index

log = logging.getLogger(__name__)

_ENTRY = [name for name in INDEX.names if name not in ("id", "problem")]  # how to read one again


class Measured(NamedTuple):
    """What became of the inputs before any model but that of captions looked at them."""

    retained: Selection  # sound, distinct, colourful enough
    repeated: dict[str, str]  # ids of repeated content and the reason it gives
    busy: float  # seconds that the workers computed


class FromPhotographs:
    """Makes pairs from photographs: the ledgers that all such pairs begin with.

    Args:
        config: everything that decides the pairs.
        place: where its ledgers lie.
    """

    def __init__(self, config: CurateConfig, *, place: Place) -> None:
        self.config = config
        self.place = place

    @property
    def entry(self) -> list[str]:
        """The columns of an entry that passes carry on."""
        masks = MASKS.names if gives_masks(self.config.source) else []
        return [*_ENTRY, *masks, *([SOURCE] if self.config.captions.enabled else [])]

    @cached_property
    def index(self) -> Ledger:
        """What the source lists."""
        c = self.config
        listed = digest(c.source, bare=c.captions.enabled)
        return self._ledger("curate/index", {"source.digest": listed, "source": c.source})

    @cached_property
    def captions(self) -> Ledger:
        """Captions that were written, of the photographs without one."""
        c = self.config
        return self._after(self.index, "curate/captions", images=c.images, captions=c.captions)

    @cached_property
    def listed(self) -> Ledger:
        """What the source lists, with the captions that were written where they are asked for."""
        if not self.config.captions.enabled:
            return self.index
        return self._after(self.captions, "curate/captioned")

    @cached_property
    def measured(self) -> Ledger:
        """Facts of every input."""
        return self._after(self.listed, "curate/measured", images=self.config.images)

    @property
    def written(self) -> tuple[Ledger, ...]:
        """The ledgers of captions that are written, where they are asked for."""
        return (self.captions, self.listed) if self.config.captions.enabled else ()

    def entries(self) -> int | None:
        """How many photographs the source lists; None where only reading all tells."""
        counts = counts_of(self.config.source)
        return counts.entries if counts else None

    def described(self) -> str:
        """What the source holds, in a line for people."""
        source = self.config.source
        _ = self.index.settings  # lists the source
        counts = counts_of(source)
        if counts is None:
            return f"counted as they are read, in {without_secrets(source.path)}"
        entries = counted(counts.entries, "photograph")
        with_one = "all" if counts.captions == counts.entries else f"{counts.captions}"
        return f"{entries}, {with_one} with a caption, in {without_secrets(source.path)}"

    def measure(self, streaming: StreamConfig) -> Measured:
        """List, caption and measure the photographs; skips and resumes what is done."""
        c = self.config
        if self.index.state() != "complete":
            bare = c.captions.enabled
            write_index(c.source, self.index, part_rows=streaming.part_rows, bare=bare)
            rows = self.index.rows(["id", "uri", "caption", "problem"], batch_size=4096)
            for line in findings(rows, c.source.store(), captioned=bare):
                log.warning("source: %s", line)
        busy = self.write_captions(streaming)
        busy += stream(
            Selection(self.listed),
            stages=[MeasurePhotograph(c.source, c.images)],
            ledger=self.measured,
            keep=[*self.entry, *MeasurePhotograph.writes.names],
            config=streaming,
        ).busy
        if count := ignored_profiles(self.measured):
            log.warning(
                "%s with a colour profile other than sRGB, which is ignored: colours are off; "
                "images.profiles=convert converts them",
                counted(count, "photograph"),
            )
        repeated = dict.fromkeys(repeated_ids(self.measured), "duplicate")
        if c.images.near_duplicates:
            others = Selection(self.measured, SOUND, frozenset(repeated))
            alike = near_repeated_ids(self.measured, others.condition)
            repeated |= dict.fromkeys(alike, "near_duplicate")
        retained = Selection(self.measured, SOUND, frozenset(repeated))
        if c.color.enabled and c.color.variant == "paper":
            sound = self.measured.count(retained.condition)
            threshold = mean_colorfulness(self.measured, retained.condition)
            retained = replace(retained, where=SOUND & (pc.field("colorfulness") > threshold))
            kept = self.measured.count(retained.condition)
            told = f"kept {kept} of {counted(sound, 'photograph')}"
            log.info("colorfulness: %s (above the mean, %.2f)", told, threshold)
        return Measured(retained, repeated, busy)

    def write_captions(self, streaming: StreamConfig) -> float:
        """Write missing captions if asked to; returns the seconds that workers computed."""
        c = self.config
        if not c.captions.enabled:
            return 0.0
        busy = write_captions(
            c.captions,
            c.source,
            c.images,
            index=self.index,
            captions=self.captions,
            captioned=self.listed,
            streaming=streaming,
        )
        counts = self.listed.manifest()["counts"]
        written, given = counts.get(c.captions.name, 0), counts.get(GIVEN, 0)
        log.info(
            "captions: %d written by %s, %d given, %d left without",
            written,
            c.captions.name,
            given,
            sum(counts.values()) - written - given,
        )
        return busy

    def _ledger(self, name: str, parts: Mapping[str, object]) -> Ledger:
        return placed(self.place, name, results_of(parts))

    def _after(self, before: Ledger, name: str, **sections: object) -> Ledger:
        return self._ledger(name, {**before.settings, **sections})

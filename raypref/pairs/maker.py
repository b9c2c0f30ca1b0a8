"""What makes the pairs of a run: the little that the rest of a run reads of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import pyarrow as pa

from raypref.core.config import Section
from raypref.core.ledger import Ledger
from raypref.core.progress import Work
from raypref.engine.stream import StreamConfig
from raypref.rewards.rewards import reward, reward_section


class Terms(NamedTuple):
    """What people call the inputs of a kind of pairs."""

    input: str  # one of them; an "s" makes the plural
    images: str  # whose licence it is
    data: str  # "aligned from ..."
    table: str  # the table of all of them, below the run's folder
    made: str  # one of what they become, in short
    made_whole: str  # the same in full
    hold: str  # what goes with the pairs when they are pushed
    learned: str  # "a model trained to ...", on them


class Kind(NamedTuple):
    """A kind of pairs: what is known of it from the settings alone."""

    terms: Terms
    sections: tuple[str, ...]  # of the settings whose models make the pairs
    limit: tuple[str, str]  # section and key of how many pairs are asked for; 0: all there are
    trainings: tuple[str, ...]  # of a run that names none
    columns: pa.Schema  # of the pairs
    tags: tuple[str, ...]  # of a model card
    citation: str  # of a model card, BibTeX; empty: the kind has no paper of its own
    filters: tuple[tuple[str, tuple[str, ...]], ...]  # in order: what is left, reasons for the rest
    sides: tuple[str, ...] = ("chosen", "rejected")  # the images of a row; of prompts none
    scored_by: tuple[str, str] | None = None  # section and key of the rewards that choose pairs

    def asked(self, config: Section) -> int:
        """How many pairs a run asks for; 0: all there are."""
        section, key = self.limit
        return int(getattr(getattr(config, section), key))

    def used(self, config: Section) -> dict[str, Section]:
        """Those sections, as far as they are not switched off, and those of its rewards."""
        found = {name: getattr(config, name) for name in self.sections}
        if config.holes.kind != "saliency":  # type: ignore[attr-defined]
            found.pop("saliency", None)
        if self.scored_by is not None:
            if config.perturb.kind == "text2image":  # type: ignore[attr-defined]
                found.pop("saliency", None)  # there is no hole
            section, key = self.scored_by
            for name in getattr(getattr(config, section), key):
                found[reward_section(name)] = reward(name, config.pickscore, config.rewards)  # type: ignore[attr-defined]
        return {name: own for name, own in found.items() if getattr(own, "enabled", True)}


class PairMaker(Protocol):
    """Makes the pairs of one run."""

    @property
    def pairs(self) -> Ledger:
        """The pairs; their columns are those of the kind."""

    @property
    def inputs(self) -> Ledger:
        """What became of every input, for people: prompt or caption, `status`, `reason`, ..."""

    @property
    def index(self) -> Ledger:
        """What the source lists."""

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All ledgers, in the order in which they are filled."""

    @property
    def needs(self) -> tuple[Callable[[], object], ...]:
        """Each raises InputError for a missing model."""

    def entries(self) -> int | None:
        """How many inputs there are; None where that is unknown without reading all."""

    def described(self) -> str:
        """What the source holds, in a line for people."""

    def run(self, streaming: StreamConfig) -> Work:
        """Make the pairs; skips and resumes what is done.

        Raises:
            InputError: not one pair was left.
        """

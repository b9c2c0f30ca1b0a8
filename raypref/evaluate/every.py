"""The evaluation on all prompt sets of a run: one `Evaluation` per set, and their tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from raypref.core.ledger import Ledger, join
from raypref.core.progress import Work
from raypref.engine.stream import StreamConfig
from raypref.evaluate.generate import BASE
from raypref.evaluate.graph import Evaluation
from raypref.evaluate.samples import draw_samples
from raypref.evaluate.sets import ROOT, PromptSet, PromptSets, earlier
from raypref.evaluate.summary import closing
from raypref.evaluate.tables import NamedTable, read_summary
from raypref.models.families.registry import INPAINTING

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

WHOLE = "evaluate.holes names none: each picture is painted whole, from its prompt alone"


class Evaluations:
    """The evaluations of one run.

    Args:
        sets: the prompt sets.
        make: makes an evaluation, given what returns its prompt set.
    """

    def __init__(
        self, sets: PromptSets, make: Callable[[Callable[[], PromptSet]], Evaluation]
    ) -> None:
        self.sets = sets
        self.make = make
        self._written: dict[str, pd.DataFrame] = {}  # by the set's place

    @cached_property
    def first(self) -> Evaluation:
        """That of the first prompt set. Its prompts need not be known yet."""
        return self.make(lambda: self.sets.all[0])

    @cached_property
    def _others(self) -> list[Evaluation]:
        return [self.make(lambda own=own: own) for own in self.sets.all[1:]]  # type: ignore[misc]

    @property
    def all(self) -> list[Evaluation]:
        """One per prompt set; none while the default set waits for the photographs."""
        return [self.first, *self._others] if self.sets.ready else []

    @property
    def complete(self) -> list[Evaluation]:
        """Those that have all that their tables need."""
        return [each for each in self.all if each.complete]

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All that `run` fills; the sets share the reference of the distances."""
        own = [ledger for each in self.all for ledger in each.ledgers]
        return tuple({ledger.path: ledger for ledger in own}.values())

    def run(self, *, trained: Mapping[str, Ledger], streaming: StreamConfig) -> Work:
        """Generate and score what is missing of every set, and draw samples of the trainings.

        Args:
            trained: the trainings and where they are.
            streaming: how rows are cut into blocks.
        """
        first = self.first
        if first.base.family in INPAINTING and first.set.holes is None:
            log.info("%s", WHOLE)
        if first.metrics.distance and not first.distance:
            log.info("no CMMD and FID: they compare with chosen images of pairs; there are none")
        busy, count = 0.0, 0
        # First the samples: the step counts as done when its ledgers, the evaluation's, are. Those
        # there are show the set that was first: another one must not draw them anew.
        if first.set.at == ROOT:
            busy += first.read_photographs(streaming)
            busy += draw_samples(
                first.base,
                first.generate,
                texts=first.texts,
                photographs=first.photographs,
                trained=trained,
                folder=first.folder,
                streaming=streaming,
            )
        for each in self.all:
            log.info("prompt set %s: %s; in %s", each.set.name, each.set.origin, each.set.at)
            work = each.run(streaming)
            busy, count = busy + work.busy, count + work.amount
        return Work(count, "images", busy)

    def tables(self) -> list[NamedTable]:
        """Write the tables of this command's sets; returns them, then those of earlier commands."""
        made = self.complete
        for each in made:
            if each.set.at not in self._written:  # win rates take seconds
                self._written[each.set.at] = each.tabulate()
        found = [NamedTable(e.set.name, e.set.at, self._written[e.set.at]) for e in made]
        if made:
            loras = {name: lora.fingerprint for name, lora in self.first.loras.items()}
            known, folder = [each.set.at for each in made], self.first.run_folder
            for at, name in earlier(folder, known=known, loras=loras).items():
                taken = name in {table.name for table in found}  # of a file that was changed
                label = f"{name} ({at})" if taken else name
                found.append(NamedTable(label, at, read_summary(join(folder, at, "table.csv"))))
        return found

    def closing(self, *, final: str, labels: Mapping[str, str]) -> str:
        """What the terminal says last: the table of every set.

        Args:
            final: the model that the run is about; empty takes the last.
            labels: names of the models for people.
        """
        about = final or [BASE, *self.first.loras][-1]
        texts = [closing(each.summary, final=about, labels=labels) for each in self.all]
        if len(texts) == 1:
            return texts[0]
        heads = [f"{each.set.name} ({len(each.prompts)} prompts)" for each in self.all]
        return "\n\n".join(f"{head}\n{text}" for head, text in zip(heads, texts, strict=True))

"""The evaluation graph on one screen: models and prompts in, images, scores and tables out.

Of one prompt set, in its folder (`sets.py`):

    images/<model>/                one ledger per model: its images
    scores/<model>/<measure>/      one ledger per model and measure: values of its images
    photographs/                   of a set of holes: photographs and masks

Of all: `evaluation/reference/<embedder>/`, embeddings of the photographs of the pairs, for the
distances. A set of holes has its own, of the photographs that they are in.

So a model that is added is generated alone, and a reward that is added reads stored images only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from raypref.core.config import InputError, Section, results_of, setting
from raypref.core.ledger import Ledger, Place, join, placed
from raypref.core.ledger_group import LedgerGroup
from raypref.core.progress import Work
from raypref.curate.select import SOUND
from raypref.engine.stream import Selection, StreamConfig, stream, stream_branches
from raypref.engine.worker import Branch
from raypref.evaluate import tables
from raypref.evaluate.generate import BASE, Adapter, GenerateConfig, rows_to_generate
from raypref.evaluate.hole_looks import hole_looks
from raypref.evaluate.kept import kept
from raypref.evaluate.measures import MetricsConfig, measures
from raypref.evaluate.painting import (
    PHOTOGRAPHS,
    drawing,
    hole_prompts,
    painted_columns,
    read_photographs,
)
from raypref.evaluate.rubric import rubric
from raypref.evaluate.sets import ROOT, PromptSet
from raypref.evaluate.written import drop_tables, write_tables
from raypref.models.backbone import BackboneConfig
from raypref.rewards.base import Decode, Embed
from raypref.rewards.config import RewardConfig
from raypref.rewards.passes import Measure, in_one_pass, passes
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.rewards import reward
from raypref.sources.prompts import Prompt

if TYPE_CHECKING:
    import pandas as pd

FACTS = ("model", "prompt_id", "prompt", "seed")


class TableConfig(Section):
    """How scores become a table."""

    resamples: int = setting(2000, "bootstrap samples per interval", ge=100)
    published: str = setting("", "table of the paper to print beside ours, such as table3")
    baseline: str = setting(BASE, "the model that win rates are against")


class Evaluation:
    """One run's evaluation: its ledgers and how they are filled.

    Args:
        base: the model that was aligned.
        generate: prompts, seeds and sampler settings.
        pickscore: the reward that curation uses too.
        others: the other rewards.
        metrics: what is measured.
        table: how scores become a table.
        prompt_set: the prompts, and where the results lie. Called late: the default set is known
            when the photographs are curated.
        pairs: whose photographs are the reference of the distances.
        needs_pairs: whether there must be pairs; else there are distances where there are pairs.
        loras: the models besides the base, in the order of the tables. Called late, since it may
            read files.
        labels: names of the models for people, as `Run.labels`.
        run_folder: of the run, local or URI; people look for tables in the set's folder below it.
        place: where its ledgers lie.
    """

    def __init__(
        self,
        base: BackboneConfig,
        generate: GenerateConfig,
        pickscore: PickScoreConfig,
        others: Mapping[str, RewardConfig],
        metrics: MetricsConfig,
        table: TableConfig,
        *,
        prompt_set: Callable[[], PromptSet],
        pairs: Ledger,
        needs_pairs: bool,
        loras: Callable[[], Mapping[str, Adapter]],
        labels: Mapping[str, str],
        run_folder: str,
        place: Place,
    ) -> None:
        self.base = base
        self.generate = generate
        self.pickscore = pickscore.exactly()
        self.others = others
        self.metrics = metrics
        self.table = table
        self.load_prompts = prompt_set
        self.pairs = pairs
        self.needs_pairs = needs_pairs
        self.load_loras = loras
        self.labels = labels
        self.run_folder = run_folder
        self.place = place
        self._measures: dict[bool, dict[str, Measure]] = {}  # with and without distances

    @cached_property
    def set(self) -> PromptSet:
        """The prompts, their name, and where their results lie."""
        return self.load_prompts()

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts."""
        return self.set.prompts

    @property
    def folder(self) -> str:
        """Where people look for its tables, local or URI."""
        return join(self.run_folder, self.set.at)

    @property
    def distance(self) -> bool:
        """Whether images are compared with photographs: those of the pairs, or of the holes.

        Not kept: the run makes the pairs after its steps were built.
        """
        pairs = self.needs_pairs or self.pairs.state() == "complete"
        return self.metrics.distance and (pairs or bool(self.generate.hole_files))

    @cached_property
    def loras(self) -> Mapping[str, Adapter]:
        """The models besides the base."""
        return self.load_loras()

    @cached_property
    def photographs(self) -> Ledger | None:
        """Photographs and masks of a set of holes; None for prompts."""
        if self.set.holes is None:
            return None
        parts = {"prompts": self.set.identity, "evaluate.size": self.generate.size}
        return self._ledger(f"{self.set.at}/{PHOTOGRAPHS}", parts)

    @property
    def texts(self) -> dict[int, str]:
        """The prompts by number; without those whose hole turned out to be unreadable."""
        if self.photographs is not None and self.photographs.state() == "complete":
            return hole_prompts(self.photographs)
        return {number: prompt.text for number, prompt in enumerate(self.prompts)}

    @cached_property
    def images(self) -> LedgerGroup:
        """The generated images."""
        common: dict[str, object] = {
            "base": self.base,
            "evaluate": self.generate,
            "prompts": self.set.identity,
        }
        if self.set.holes is not None:
            common["evaluate.blend"] = self.generate.blend
        of_model = {name: {"lora": lora.fingerprint} for name, lora in self.loras.items()}
        return LedgerGroup(
            join(self.folder, "images"),
            ledgers={
                model: self._ledger(f"{self.set.at}/images/{model}", {**common, **own})
                for model, own in {BASE: {}, **of_model}.items()
            },
        )

    @property
    def measures(self) -> dict[str, Measure]:
        """What is measured, by the name of its ledgers."""
        distance = self.distance
        if distance not in self._measures:
            metrics = self.metrics.model_copy(update={"distance": distance})
            found = measures(metrics, self.pickscore, self.others)
            if self.photographs is not None:
                found |= kept(self.photographs, painted_columns(self.generate)[-1])
                found |= rubric(self.metrics.rubric)
                found |= hole_looks(self.photographs) if metrics.looks else {}
            self._measures[distance] = found
        return self._measures[distance]

    def scores(self, name: str) -> LedgerGroup:
        """What a measure says of the images."""
        settings = self.measures[name].settings
        return LedgerGroup(
            join(self.folder, name),
            ledgers={
                model: self._ledger(
                    f"{self.set.at}/scores/{model}/{name}",
                    {"images": images.fingerprint, **settings},
                )
                for model, images in self.images.ledgers.items()
            },
        )

    @cached_property
    def reference(self) -> Ledger:
        """Embeddings of the photographs of the pairs, or of a set of holes."""
        parts: dict[str, object] = {"embedder": self._embedder()}
        if self.photographs is not None:
            parts["photographs"] = self.photographs.fingerprint
            at = f"{self.set.at}/reference/{PHOTOGRAPHS}/{self.metrics.embedder}"
            return self._ledger(at, parts)
        parts["pairs"] = self.pairs.fingerprint
        return self._ledger(f"{ROOT}/reference/{self.metrics.embedder}", parts)

    def _ledger(self, name: str, parts: Mapping[str, object]) -> Ledger:
        return placed(self.place, name, results_of(parts))

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All that `run` fills."""
        groups = [self.images, *map(self.scores, self.measures)]
        distance = (self.reference,) if self.distance else ()
        read = () if self.photographs is None else (self.photographs,)
        return (*read, *(own for group in groups for own in group.ledgers.values()), *distance)

    @property
    def complete(self) -> bool:
        """Whether everything is there that the tables need."""
        return all(ledger.state() == "complete" for ledger in self.ledgers)

    def checks(self) -> list[Callable[[], object]]:
        """Each raises InputError for what is missing."""
        chosen = [reward(n, self.pickscore, self.others) for n in self.metrics.rewards]
        # Without trainings too: the run may make the pairs before it evaluates.
        distance = [self._embedder().check] if self.metrics.distance else []
        return [*(config.check for config in chosen), *distance, self._check_baseline]

    def _check_baseline(self) -> None:
        models = [BASE, *self.loras]
        if self.table.baseline not in models:
            raise InputError(
                f"table.baseline={self.table.baseline}: the models are {', '.join(models)}"
            )

    def read_photographs(self, streaming: StreamConfig) -> float:
        """Read the photographs and masks of a set of holes, once; returns seconds of work."""
        own, holes = self.photographs, self.set.holes
        if own is None or holes is None or own.state() == "complete":
            return 0.0
        return read_photographs(holes.rows, own, size=self.generate.size, streaming=streaming)

    def run(self, streaming: StreamConfig) -> Work:
        """Generate and score what is missing; resumes what is half done.

        Measures whose models fit beside each other run in one pass: an image is read and decoded
        once for all of them.
        """
        models = self.images.unfinished()
        count, busy = 0, self.read_photographs(streaming)
        if models:
            rows = rows_to_generate(self.texts, self.generate, list(models.ledgers))
            folders = {n: lora.folder for n, lora in self.loras.items() if n in models.ledgers}
            stages = drawing(self.base, self.generate, loras=folders, photographs=self.photographs)
            keep = [*FACTS, *stages[-1].writes.names]
            busy += stream(rows, stages=stages, ledger=models, keep=keep, config=streaming).busy
            count = rows.num_rows
        # Usually there is one group: all models lack the same measures.
        groups: dict[tuple[str, ...], dict[str, Measure]] = {}
        for name, measure in self.measures.items():
            if scores := self.scores(name).unfinished():
                groups.setdefault(tuple(scores.ledgers), {})[name] = measure
        for lacking, chosen in groups.items():
            for together in passes(chosen):
                busy += self._measure(together, lacking, streaming)
        if self.distance and self.reference.state() != "complete":
            busy += self._embed_reference(streaming)
        return Work(count, "images", busy)

    def _measure(
        self, together: Mapping[str, Measure], models: Sequence[str], streaming: StreamConfig
    ) -> float:
        """One pass over the images of some models, for measures that these lack."""
        common, own = in_one_pass(together, column="image")
        return stream_branches(
            Selection(self.images.of(models)),
            label=", ".join(together),
            stages=common,
            branches=[
                Branch(own[name], self.scores(name).of(models), [*FACTS, *measure.columns])
                for name, measure in together.items()
            ],
            config=streaming,
            runtime_env=next(iter(together.values())).runtime_env,
        ).busy

    def _embed_reference(self, streaming: StreamConfig) -> float:
        column = "chosen" if self.photographs is None else "photograph"
        rows = Selection(self.pairs, columns=("id", column))
        if self.photographs is not None:
            rows = Selection(self.photographs, where=SOUND, columns=("id", column))
        return stream(
            rows,
            stages=[Decode(column), Embed(self._embedder(), column=column)],
            ledger=self.reference,
            keep=["embedding"],
            config=streaming,
        ).busy

    def _embedder(self) -> RewardConfig:
        return reward(self.metrics.embedder, self.pickscore, self.others)

    @cached_property
    def long(self) -> pd.DataFrame:
        """One row per image and metric, model by model in the order of the tables.

        The columns are `statistics.SCORES` and `category`. All ledgers must be complete.
        """
        import pandas as pd

        parts = []
        for name, measure in self.measures.items():
            if measure.scores:
                wide = self.scores(name).table([*FACTS, *measure.scores]).to_pandas()
                parts.append(
                    wide.melt(list(FACTS), measure.scores, var_name="metric", value_name="score")
                )
        long = pd.concat(parts, ignore_index=True)
        categories = [prompt.category for prompt in self.prompts]
        long.insert(2, "category", long["prompt_id"].map(dict(enumerate(categories))))
        place = {model: number for number, model in enumerate([BASE, *self.loras])}
        return long.sort_values(
            "model", key=lambda models: models.map(place), kind="stable", ignore_index=True
        )

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The table's numbers. All must be complete."""
        import pandas as pd

        from raypref.evaluate import statistics
        from raypref.evaluate.distance import cmmd_summary, fid_summary, reference_of

        resamples = self.table.resamples
        summary = statistics.summarise(self.long, base=BASE, resamples=resamples)
        parts = [summary, statistics.human_preference(summary, base=BASE)]
        if self.distance:
            group = self.scores(self.metrics.embedding)
            embeddings = group.table(["model", "prompt_id", "embedding"]).to_pandas()
            # Of holes every photograph is an example of what is wanted, as of pairs.
            real = reference_of(self.reference, None if self.photographs else self.pairs)
            cmmd = partial(cmmd_summary, base=BASE, resamples=resamples)
            parts.append(cmmd(embeddings, real, metric=self.metrics.distances[0]))
            parts.append(fid_summary(embeddings, real, base=BASE))
        return statistics.arranged(pd.concat([p for p in parts if not p.empty]))

    @cached_property
    def categories(self) -> pd.DataFrame:
        """The same for the prompts of each category. All must be complete."""
        from raypref.evaluate import statistics

        groups = {number: prompt.groups for number, prompt in enumerate(self.prompts)}
        resamples = self.table.resamples
        return statistics.by_category(self.long, groups, base=BASE, resamples=resamples)

    def published(self) -> dict[tuple[str, str], float] | None:
        """The paper's numbers to print beside ours, if asked for."""
        name = self.table.published
        return tables.published(name, self.base.family) if name else None

    def tabulate(self) -> pd.DataFrame:
        """Write scores and tables where people look for them; returns the table's numbers."""
        from raypref.evaluate import statistics

        summary = self.summary
        wins = statistics.win_rates(
            self.long, baseline=self.table.baseline, resamples=self.table.resamples
        )
        write_tables(
            self.folder,
            *(self.long, summary, self.categories, wins),
            published=self.published(),
            labels=self.labels,
            about={"name": self.set.name, "prompts": self.set.origin},
        )
        return summary

    def drop_tables(self) -> None:
        """Remove what `tabulate` wrote: it is about results that are replaced."""
        drop_tables(self.folder)

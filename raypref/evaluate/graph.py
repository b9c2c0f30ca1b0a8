"""The evaluation graph on one screen: models and prompts in, images, scores and tables out.

Of one prompt set, in its folder (`sets.py`):

    images/<model>/                one ledger per model: its images
    scores/<model>/<measure>/      one ledger per model and measure: values of its images

Of all: `evaluation/reference/<embedder>/`, embeddings of the photographs, for the distances.

So a model that is added is generated alone, and a reward that is added reads stored images only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from raypref.core.config import InputError, Section, results_of, setting
from raypref.core.ledger import (
    Ledger,
    Place,
    join,
    placed,
    remove_file,
    write_bytes,
    write_table,
)
from raypref.core.ledger_group import LedgerGroup
from raypref.core.progress import Work
from raypref.core.rows import Transform
from raypref.engine.stream import Selection, StreamConfig, stream, stream_branches
from raypref.engine.worker import Branch
from raypref.evaluate import tables
from raypref.evaluate.generate import BASE, Adapter, Generate, GenerateConfig, rows_to_generate
from raypref.evaluate.measures import MetricsConfig, measures
from raypref.evaluate.sets import ABOUT, ROOT, PromptSet
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
# What `tabulate` writes.
TABLES = (
    *("scores.parquet", "table.md", "table.csv", "table.tex"),
    *("categories.md", "categories.csv", "wins.csv", ABOUT),
)


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
        """Whether images are compared with the photographs of the pairs.

        Not kept: the run makes the pairs after its steps were built.
        """
        return self.metrics.distance and (self.needs_pairs or self.pairs.state() == "complete")

    @cached_property
    def loras(self) -> Mapping[str, Adapter]:
        """The models besides the base."""
        return self.load_loras()

    @cached_property
    def images(self) -> LedgerGroup:
        """The generated images."""
        common = {
            "base": self.base,
            "evaluate": self.generate,
            "prompts": self.set.identity,
        }
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
            self._measures[distance] = measures(metrics, self.pickscore, self.others)
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
        """Embeddings of the photographs of the pairs."""
        parts = {"pairs": self.pairs.fingerprint, "embedder": self._embedder()}
        return self._ledger(f"{ROOT}/reference/{self.metrics.embedder}", parts)

    def _ledger(self, name: str, parts: Mapping[str, object]) -> Ledger:
        return placed(self.place, name, results_of(parts))

    @property
    def ledgers(self) -> tuple[Ledger, ...]:
        """All that `run` fills."""
        groups = [self.images, *map(self.scores, self.measures)]
        distance = (self.reference,) if self.distance else ()
        return (*(own for group in groups for own in group.ledgers.values()), *distance)

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

    def run(self, streaming: StreamConfig) -> Work:
        """Generate and score what is missing; resumes what is half done.

        Measures whose models fit beside each other run in one pass: an image is read and decoded
        once for all of them.
        """

        models = _unfinished(self.images)
        count, busy = 0, 0.0
        if models:
            texts = [prompt.text for prompt in self.prompts]
            rows = rows_to_generate(texts, self.generate, list(models.ledgers))
            folders = {n: lora.folder for n, lora in self.loras.items() if n in models.ledgers}
            stages: list[Transform] = [Generate(self.base, self.generate, loras=folders)]
            keep = [*FACTS, "image"]
            busy += stream(rows, stages=stages, ledger=models, keep=keep, config=streaming).busy
            count = rows.num_rows
        # Usually there is one group: all models lack the same measures.
        groups: dict[tuple[str, ...], dict[str, Measure]] = {}
        for name, measure in self.measures.items():
            if scores := _unfinished(self.scores(name)):
                groups.setdefault(tuple(scores.ledgers), {})[name] = measure
        for lacking, chosen in groups.items():
            for together in passes(chosen):
                busy += self._measure(together, lacking, streaming)
        if self.distance and self.reference.state() != "complete":
            busy += self._embed_photographs(streaming)
        return Work(count, "images", busy)

    def _measure(
        self, together: Mapping[str, Measure], models: Sequence[str], streaming: StreamConfig
    ) -> float:
        """One pass over the images of some models, for measures that these lack."""
        common, own = in_one_pass(together, column="image")
        return stream_branches(
            Selection(_some(self.images, models)),
            label=", ".join(together),
            stages=common,
            branches=[
                Branch(own[name], _some(self.scores(name), models), [*FACTS, *measure.columns])
                for name, measure in together.items()
            ],
            config=streaming,
            runtime_env=next(iter(together.values())).runtime_env,
        ).busy

    def _embed_photographs(self, streaming: StreamConfig) -> float:
        return stream(
            Selection(self.pairs, columns=("id", "chosen")),
            stages=[Decode("chosen"), Embed(self._embedder(), column="chosen")],
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
            real = reference_of(self.reference, self.pairs)
            parts.append(cmmd_summary(embeddings, real, base=BASE, resamples=resamples))
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

        summary, paper = self.summary, self.published()
        wins = statistics.win_rates(
            self.long, baseline=self.table.baseline, resamples=self.table.resamples
        )
        scores = pa.Table.from_pandas(self.long, preserve_index=False)
        write_table(join(self.folder, "scores.parquet"), scores)
        texts = {
            "table.md": tables.markdown(summary, published=paper, labels=self.labels),
            "table.csv": tables.csv(summary, published=paper),
            "table.tex": tables.latex(summary, published=paper, labels=self.labels),
            "categories.md": tables.categories_markdown(self.categories, labels=self.labels),
            "categories.csv": tables.plain_csv(self.categories),
            "wins.csv": tables.plain_csv(wins),
            ABOUT: json.dumps({"name": self.set.name, "prompts": self.set.origin}, indent=1),
        }
        for name, text in texts.items():
            write_bytes(join(self.folder, name), text.encode())
        return summary

    def drop_tables(self) -> None:
        """Remove what `tabulate` wrote: it is about results that are replaced."""
        for name in TABLES:
            remove_file(join(self.folder, name))


def _unfinished(group: LedgerGroup) -> LedgerGroup | None:
    """The ledgers of a group that are not complete."""
    left = [model for model, own in group.ledgers.items() if own.state() != "complete"]
    return _some(group, left) if left else None


def _some(group: LedgerGroup, models: Sequence[str]) -> LedgerGroup:
    """The ledgers of some models."""
    return LedgerGroup(group.path, ledgers={model: group.ledgers[model] for model in models})

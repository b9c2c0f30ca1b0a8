"""The whole run on one screen: its configuration and the order of its steps.

    pairs -> cache -> the trainings that `train` names -> evaluation -> card -> report

How the steps are run, skipped, resumed or refused is in `execute.py`.

Torch, diffusers, Ray and MLflow take seconds to import. To read settings and to plan needs none of
them, so a module that holds settings or a row stage imports such a library in the functions that
use it, and a step imports here what it runs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from raypref.align import trainings
from raypref.align.alignment import Alignment
from raypref.align.cache import CacheConfig, Encode, rows_to_encode
from raypref.align.check import check_pairs
from raypref.align.stage import StageConfig
from raypref.align.trainings import Training
from raypref.config import InputError, Section, results_of, setting, to_toml, without_secrets
from raypref.curate.curate import CurateConfig, Curation
from raypref.curate.export import export
from raypref.diffusion import parts
from raypref.diffusion.backbone import BackboneConfig
from raypref.diffusion.fuse import ModelConfig, fuse
from raypref.diffusion.lora_config import LoraConfig
from raypref.evaluate import tables
from raypref.evaluate.evaluate import Evaluation, TableConfig
from raypref.evaluate.generate import Adapter, GenerateConfig, other_loras
from raypref.evaluate.labelled import JudgeConfig
from raypref.evaluate.measures import MetricsConfig
from raypref.evaluate.samples import draw_samples
from raypref.ledger import Ledger, Place, absolute, in_folder, join, placed, read_bytes, write_bytes
from raypref.progress import Progress, Work
from raypref.rewards.rewards import RewardsConfig
from raypref.streaming import StreamConfig, stream
from raypref.tracking import Tracker, TrackingConfig

if TYPE_CHECKING:
    from raypref.align.watch import StepMetrics

log = logging.getLogger(__name__)


class RunConfig(CurateConfig):
    """All settings of a run: those of curation, and these."""

    run: str = setting("run", "name of the run; its folder is <storage>/<run>", min_length=1)
    storage: str = setting("runs", "folder of all runs, local or URI", min_length=1)
    base: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    cache: CacheConfig = CacheConfig()
    train: tuple[Training, ...] = setting(
        ("stage1", "stage2", "stage2_alone"),
        "trainings in order: stage1, stage2, stage2_alone (from where stage 1 starts), sft",
        affects_result=False,
        min_length=1,
    )
    training_seed: int = setting(
        0, "added to seed in trainings alone: others of the same settings, from the same pairs"
    )
    stage1: StageConfig = StageConfig(objective="dro", steps=1600, ema_decay=0.9999)
    stage2: StageConfig = StageConfig(start="stage1", lr=2.56e-6, warmup_steps=125)
    sft: StageConfig = StageConfig(objective="sft", steps=1600, ema_decay=0.9999)
    evaluate: GenerateConfig = GenerateConfig()
    rewards: RewardsConfig = RewardsConfig()
    metrics: MetricsConfig = MetricsConfig()
    table: TableConfig = TableConfig()
    model: ModelConfig = ModelConfig()
    judge: JudgeConfig = JudgeConfig()
    stream: StreamConfig = StreamConfig()
    tracking: TrackingConfig = TrackingConfig()


@dataclass(frozen=True)
class Step:
    """One arrow of the run: done when its ledgers are complete. Without any it always runs."""

    name: str
    # Called late: a job that only curates must not need a prompt file to know its ledgers.
    ledgers: Callable[[], tuple[Ledger, ...]]
    run: Callable[[], Work]
    needs: tuple[Callable[[], object], ...] = ()  # each raises InputError for a missing model
    read: bool = True  # whether later steps read what it makes

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        ledgers = self.ledgers()
        return bool(ledgers) and all(ledger.state() == "complete" for ledger in ledgers)


class Run:
    """A configured run.

    Args:
        config: all settings.
        place: where its ledgers lie; by default in its folder.
        models: the models to evaluate besides the base; by default all that are trained.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        place: Place | None = None,
        models: Collection[str] | None = None,
    ) -> None:
        self.config = config
        self.folder = absolute(join(config.storage, config.run))
        self.place = place or in_folder(self.folder)
        self.models = models
        self.tracker: Tracker | None = None  # set when the run is executed

    @cached_property
    def curation(self) -> Curation:
        """Photographs to pairs."""
        return Curation(self.config, place=self.place)

    @cached_property
    def cache(self) -> Ledger:
        """Encoded pairs."""
        parts = {"pairs": self.curation.pairs.fingerprint, "base": self.config.base}
        return self._ledger("cache", parts)

    @cached_property
    def alignment(self) -> Alignment:
        """Encoded pairs to LoRAs."""
        c = self.config
        return Alignment(
            trainings.settle(c.train, stage1=c.stage1, stage2=c.stage2, sft=c.sft),
            base=c.base,
            lora=c.lora,
            cache=self.cache,
            place=self.place,
            seed=c.seed + c.training_seed,
        )

    @property
    def trained(self) -> dict[str, Ledger]:
        """The ledgers of the trainings."""
        return self.alignment.trained

    @property
    def final_model(self) -> str:
        """The model that the run is about, by its name in the tables."""
        return trainings.shown_as(self.alignment.final, self.alignment.stages)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Images, scores, table."""
        c = self.config
        return Evaluation(
            c.base,
            c.evaluate,
            c.pickscore,
            c.rewards,
            c.metrics,
            c.table,
            pairs=self.curation.pairs,
            loras=self._adapters,
            folder=join(self.folder, "evaluation"),
            place=self.place,
        )

    def _adapters(self) -> dict[str, Adapter]:
        """The LoRAs that are evaluated: those trained here under their names in tables, others."""
        trained = {
            name: Adapter(own.path, own.fingerprint)
            for name, own in self.alignment.shown.items()
            if self.models is None or name in self.models
        }
        return trained | other_loras(self.config.evaluate.loras)

    @cached_property
    def steps(self) -> list[Step]:
        """The steps in order."""
        c, ev, align = self.config, self.evaluation, self.alignment
        base = partial(parts.check_base, c.base)
        reward = (c.pickscore.model_folder, c.pickscore.processor_folder)
        artworks = (c.photographic.folder,) if c.photographic.enabled else ()
        sides = tuple(
            partial(parts.check_side, c.base, side, key=key)
            for key, side in (("images.size", c.images.size), ("evaluate.size", c.evaluate.size))
        )
        starts: tuple[Callable[[], object], ...] = (base,)
        if align.imports:
            starts = (base, align.check_starts)
        adapter = partial(parts.check_adapter, c.base, c.lora)
        train = [
            Step(
                name,
                partial(tuple, [self.trained[name]]),
                partial(self._train, name),
                (*starts, adapter, partial(_check_workers, name, job.stage)),
            )
            for name, job in align.jobs.items()
        ]
        return [
            Step(
                "pairs",
                lambda: self.curation.ledgers,
                self._curate,
                (c.saliency.file, partial(c.perturb.check, c.images.size), *reward, *artworks),
            ),
            *(
                [Step("export", self._exports, self._export, read=False)]
                if c.export.formats
                else []
            ),
            Step("cache", lambda: (self.cache,), self._encode, (base, sides[0])),
            *([Step("start", self._starts, self._bring_in, starts)] if align.imports else []),
            *train,
            Step("evaluation", lambda: ev.ledgers, self._evaluate, (base, *ev.checks(), sides[1])),
            *([Step("fused", lambda: (self.fused,), self._fuse)] if c.model.fused else []),
            Step("card", tuple, self._card),
            # The page is made again every time and tells the latest; its pictures are written once.
            Step("report", tuple, self._report),
        ]

    def _curate(self) -> Work:
        return self.curation.run(self.config.stream)

    def _exports(self) -> tuple[Ledger, ...]:
        return tuple(
            self._ledger(f"export/{form}", {"pairs": self.curation.pairs.fingerprint})
            for form in self.config.export.formats
        )

    def _export(self) -> Work:
        for form, target in zip(self.config.export.formats, self._exports(), strict=True):
            export(self.curation.pairs, target, form)
        return Work(len(self.config.export.formats), "formats")

    def _encode(self) -> Work:
        check_pairs(self.curation.pairs, side=self.config.images.size)
        if not {*self.cache.parts()} <= {*self.curation.pairs.parts()}:
            self.cache.clear()  # begun by a version that cut the pairs in another way
        stages = [Encode(self.config.base, self.config.cache)]
        rows = rows_to_encode(self.curation.pairs, stages[0].reads)
        columns = stages[0].writes.names
        streamed = stream(
            rows, stages=stages, ledger=self.cache, keep=columns, config=self.config.stream
        )
        return Work(rows.count(), "rows", streamed.busy)

    def _starts(self) -> tuple[Ledger, ...]:
        return tuple(self.alignment.starts.values())

    def _bring_in(self) -> Work:
        self.alignment.bring_in_starts()
        return Work(len(self.alignment.starts), "LoRAs")

    def _train(self, name: str) -> Work:
        from raypref.align.train import train_stage

        job, ledger = self.alignment.jobs[name], self.trained[name]
        ledger.begin()
        busy = 0.0

        def on_step(metrics: StepMetrics) -> None:
            nonlocal busy
            busy += metrics["seconds"]
            follow(metrics)

        follow = self._follower(name, job.stage.steps)
        train_stage(job, on_step=on_step)
        ledger.commit(expected=0, counts={"steps": job.stage.steps})
        return Work(job.stage.steps, "steps", busy)

    def _follower(self, name: str, steps: int) -> Callable[[StepMetrics], None]:
        """Turns a training's metrics into progress lines and MLflow metrics."""
        progress: Progress | None = None

        def follow(metrics: StepMetrics) -> None:
            nonlocal progress
            step, note = int(metrics["step"]), f"loss {metrics['loss']:.5f}"
            if progress is None:  # counts from the first step, not from the start of the workers
                every = self.config.stream.progress_seconds
                progress = Progress(name, total=steps, done=step, unit="steps", every=every)
            else:
                # A restarted worker repeats steps since its checkpoint: its own number counts.
                progress.add(step - progress.done, note=note)
            if step == steps:
                progress.finish(note=note)
            assert self.tracker is not None
            self.tracker.metrics(
                {f"{name}/{key}": value for key, value in metrics.items() if key != "step"},
                step=step,
            )

        return follow

    def _evaluate(self) -> Work:
        # First the samples: the step counts as done when its ledgers, the evaluation's, are.
        busy = draw_samples(
            self.config.base,
            self.config.evaluate,
            trained=self.trained,
            folder=self.evaluation.folder,
            streaming=self.config.stream,
        )
        work = self.evaluation.run(self.config.stream)
        return work._replace(busy=work.busy + busy)

    @cached_property
    def fused(self) -> Ledger:
        """The pipeline with the final LoRA merged."""
        model = self.config.model
        lora = self.trained[self.alignment.final].fingerprint
        return self._ledger(
            "fused", {"base": self.config.base, "lora": lora, "dtype": model.fused_dtype}
        )

    def _fuse(self) -> Work:
        c, ledger = self.config, self.fused
        ledger.begin()
        lora = self.trained[self.alignment.final].path
        fuse(c.base, lora=lora, dtype=c.model.fused_dtype, folder=ledger.path)
        ledger.commit(expected=0, counts={})
        return Work(1, "pipelines")

    def _card(self) -> Work:
        from raypref.report.card import model_card

        c, ev, final = self.config, self.evaluation, self.trained[self.alignment.final]
        if final.state() != "complete" or self.curation.pairs.state() != "complete":
            return Work(0, "cards")
        stages = self.alignment.stages
        chain = trainings.lineage(self.alignment.final, stages)
        first = stages[chain[0]].start
        card = model_card(
            name=c.run,
            base=c.base,
            licence=c.model.license,
            photographs=c.source.license,
            counts=self.curation.pairs.manifest()["counts"],
            starts_from=first if trainings.is_weights(first) else "",
            stages={name: _results_of(stages[name]) for name in chain},
            lora=_results_of(c.lora),
            table=tables.markdown(ev.summary) if ev.complete else "",
            fused=c.model.fused,
        )
        write_bytes(join(final.path, "README.md"), card.encode())
        return Work(1, "cards")

    def _report(self) -> Work:
        from raypref.report.collect import collect
        from raypref.report.page import render

        ev = self.evaluation
        data = collect(
            name=self.config.run,
            config_toml=without_secrets(to_toml(self.config)),
            seed=self.config.seed,
            record=read_record(self.folder),
            folder=self.folder,
            pairs=self.curation.pairs,
            min_gap=self.config.select.min_gap,
            trained=self.trained,
            results={n: trainings.shown_as(n, self.alignment.stages) for n in self.trained},
            images=ev.images.ledgers,
            table=ev.tabulate() if ev.complete else None,
            categories=ev.categories if ev.complete else None,
            final=self.final_model,
            published=ev.published() or {},
            tracking_uri=self.config.tracking.uri,
        )
        write_bytes(join(self.folder, "report", "index.html"), render(data).encode())
        return Work(1, "pages")

    def _ledger(self, name: str, parts: Mapping[str, Any]) -> Ledger:
        return placed(self.place, name, results_of(parts))


def _check_workers(name: str, stage: StageConfig) -> None:
    if not 1 <= stage.resources.workers <= stage.batch:
        key = name.removesuffix("_alone")
        raise InputError(
            f"{key}.resources.workers={stage.resources.workers}: every worker takes a share of a "
            f"step's samples, so it is 1 to {key}.batch={stage.batch}"
        )


def _results_of(section: Section) -> dict[str, Any]:
    """The settings of one section that decide what comes out."""
    return {key.removeprefix("."): v for key, v in results_of({"": section}).items()}


def read_record(folder: str) -> dict[str, Any]:
    """What `run.json` says, or an empty record."""
    data = read_bytes(join(folder, "run.json"))
    return {"steps": {}} if data is None else json.loads(data)

"""The whole run on one screen: its configuration and the order of its steps.

    pairs -> cache -> stage1 -> stage2 (and stage2_alone) -> evaluation -> report

How the steps are run, skipped, resumed or refused is in `execute.py`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from raypref.align.cache import CacheConfig, Encode, rows_to_encode
from raypref.align.loop import StepMetrics
from raypref.align.stage import StageConfig
from raypref.align.train import StageJob, train_stage
from raypref.config import InputError, results_of, setting, to_toml
from raypref.curate.curate import CurateConfig, Curation
from raypref.curate.export import export
from raypref.diffusion.backbone import BackboneConfig
from raypref.diffusion.lora import LoraConfig
from raypref.evaluate.evaluate import Evaluation, TableConfig
from raypref.evaluate.generate import Adapter, GenerateConfig, other_loras
from raypref.evaluate.labelled import JudgeConfig
from raypref.evaluate.measures import MetricsConfig
from raypref.evaluate.samples import draw_samples
from raypref.ledger import (
    Ledger,
    Place,
    absolute,
    in_folder,
    join,
    placed,
    read_bytes,
    write_bytes,
)
from raypref.progress import Progress, Work
from raypref.report.collect import collect
from raypref.report.page import render
from raypref.rewards.rewards import RewardsConfig
from raypref.streaming import StreamConfig, stream
from raypref.tracking import Tracker, TrackingConfig

log = logging.getLogger(__name__)

# A model of the evaluation to the training that made it.
MODELS = {"stage1": "stage1", "stage2_alone": "stage2_alone", "both": "stage2"}


class RunConfig(CurateConfig):
    """All settings of a run: those of curation, and these."""

    run: str = setting("run", "name of the run; its folder is <storage>/<run>", min_length=1)
    storage: str = setting("runs", "folder of all runs, local or URI", min_length=1)
    base: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    cache: CacheConfig = CacheConfig()
    stage1: StageConfig = StageConfig(objective="dro", steps=1600, ema_decay=0.9999)
    stage2: StageConfig = StageConfig(start="stage1", lr=2.56e-6, warmup_steps=125)
    stage2_alone: bool = setting(True, "also train stage 2 from the base, for the table")
    evaluate: GenerateConfig = GenerateConfig()
    rewards: RewardsConfig = RewardsConfig()
    metrics: MetricsConfig = MetricsConfig()
    table: TableConfig = TableConfig()
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
    def trainings(self) -> dict[str, StageConfig]:
        """Settings of the trainings, by name, in order."""
        c = self.config
        stages = {"stage1": c.stage1, "stage2": c.stage2}
        if c.stage2_alone:
            stages["stage2_alone"] = c.stage2.model_copy(update={"start": "base"})
        return stages

    @cached_property
    def stages(self) -> dict[str, StageJob]:
        """The trainings, by name, in order."""
        c = self.config
        starts = {"base": None, "stage1": self.trained["stage1"].path}
        return {
            name: StageJob(
                name=name,
                base=c.base,
                lora=c.lora,
                stage=stage,
                cache=self.cache,
                folder=self.trained[name].path,
                start=starts[stage.start] if stage.start in starts else absolute(stage.start),
                # One name for both: the same samples in the same order, so that "stage 2 alone"
                # differs from "stage 2" by its start only.
                draws=name.removesuffix("_alone"),
                seed=c.seed,
            )
            for name, stage in self.trainings.items()
        }

    @cached_property
    def trained(self) -> dict[str, Ledger]:
        """The ledgers of the trainings."""
        ledgers: dict[str, Ledger] = {}
        for name, stage in self.trainings.items():
            parts = {
                "cache": self.cache.fingerprint,
                name: stage,
                "lora": self.config.lora,
                "seed": self.config.seed,
            }
            if stage.start == "stage1":
                parts["stage1"] = ledgers["stage1"].fingerprint
            ledgers[name] = self._ledger(name, parts)
        return ledgers

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
        ours = {
            model: self.trained[stage]
            for model, stage in MODELS.items()
            if stage in self.trained and (self.models is None or model in self.models)
        }
        trained = {name: Adapter(own.path, own.fingerprint) for name, own in ours.items()}
        return trained | other_loras(self.config.evaluate.loras)

    @cached_property
    def steps(self) -> list[Step]:
        """The steps in order."""
        c, ev = self.config, self.evaluation
        base = c.base.folder
        reward = (c.pickscore.model_folder, c.pickscore.processor_folder)
        artworks = (c.photographic.folder,) if c.photographic.enabled else ()
        trainings = [
            Step(
                name,
                partial(self._ledgers_of, name),
                partial(self._train, name),
                (base, partial(_check_workers, name, job.stage)),
            )
            for name, job in self.stages.items()
        ]
        return [
            Step(
                "pairs",
                lambda: self.curation.ledgers,
                self._curate,
                (c.saliency.file, c.perturb.folder, *reward, *artworks),
            ),
            *([Step("export", self._exports, self._export)] if c.export.formats else []),
            Step("cache", lambda: (self.cache,), self._encode, (base,)),
            *trainings,
            Step("evaluation", lambda: ev.ledgers, self._evaluate, tuple(ev.checks())),
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
        rows = rows_to_encode(self.curation.pairs)
        stages = [Encode(self.config.base, self.config.cache)]
        columns = Encode.writes.names
        streamed = stream(
            rows, stages=stages, ledger=self.cache, keep=columns, config=self.config.stream
        )
        return Work(rows.num_rows, "rows", streamed.busy)

    def _ledgers_of(self, stage: str) -> tuple[Ledger, ...]:
        return (self.trained[stage],)

    def _train(self, name: str) -> Work:
        job, ledger = self.stages[name], self.trained[name]
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

    def _report(self) -> Work:
        ev = self.evaluation
        data = collect(
            name=self.config.run,
            config_toml=to_toml(self.config),
            seed=self.config.seed,
            record=read_record(self.folder),
            folder=self.folder,
            pairs=self.curation.pairs,
            min_gap=self.config.select.min_gap,
            trained=self.trained,
            images=ev.images.ledgers,
            table=ev.tabulate() if ev.complete else None,
            categories=ev.categories if ev.complete else None,
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


def read_record(folder: str) -> dict[str, Any]:
    """What `run.json` says, or an empty record."""
    data = read_bytes(join(folder, "run.json"))
    return {"steps": {}} if data is None else json.loads(data)

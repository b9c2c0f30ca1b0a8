"""The whole run on one screen: its configuration and the order of its steps.

    pairs -> cache -> stage1 -> stage2 (and stage2_alone) -> evaluation -> report

A step is skipped when its ledger is complete for the same fingerprint, resumed when it is half
done, and refused when it was made with other settings (`redo` replaces it).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from raypref.align.cache import CacheConfig, Encode, rows_to_encode
from raypref.align.stage import StageConfig
from raypref.align.train import StageJob, train_stage
from raypref.config import InputError, fingerprint, flatten, results_of, setting, to_toml
from raypref.curate.curate import CurateConfig, Curation
from raypref.diffusion.backbone import BackboneConfig
from raypref.diffusion.lora import LoraConfig
from raypref.evaluate.evaluate import Evaluation, TableConfig
from raypref.evaluate.generate import GenerateConfig
from raypref.ledger import Ledger, join, read_bytes, write_bytes
from raypref.progress import Progress
from raypref.report.collect import collect
from raypref.report.page import render
from raypref.streaming import StreamConfig, start_ray, stream
from raypref.tracking import Tracker, TrackingConfig
from raypref.versions import versions

log = logging.getLogger(__name__)

CURATE = ("pairs",)
ALIGN = ("cache", "stage1", "stage2", "stage2_alone")
EVALUATE = ("evaluation", "report")


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
    evaluate: GenerateConfig
    table: TableConfig = TableConfig()
    stream: StreamConfig = StreamConfig()
    tracking: TrackingConfig = TrackingConfig()


class Work(NamedTuple):
    """What a step did."""

    amount: int
    unit: str  # in the plural


@dataclass(frozen=True)
class Step:
    """One arrow of the run: complete when its last ledger is."""

    name: str
    ledgers: tuple[Ledger, ...]
    run: Callable[[], Work]
    check: Callable[[], object]  # raises InputError when something it needs is missing

    @property
    def done(self) -> bool:
        """Whether all its ledgers are complete."""
        return all(ledger.state() == "complete" for ledger in self.ledgers)


class Run:
    """A configured run.

    Args:
        config: all settings.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = join(config.storage, config.run)
        self.tracker: Tracker | None = None

    @cached_property
    def curation(self) -> Curation:
        """Photographs to pairs."""
        return Curation(self.config, folder=self.folder)

    @cached_property
    def cache(self) -> Ledger:
        """Encoded pairs."""
        parts = {"pairs": self.curation.pairs.fingerprint, "base": self.config.base}
        return self._ledger("cache", parts)

    @cached_property
    def stages(self) -> dict[str, StageJob]:
        """The trainings, by name, in order."""
        c = self.config
        stages = {"stage1": c.stage1, "stage2": c.stage2}
        if c.stage2_alone:
            stages["stage2_alone"] = c.stage2.model_copy(update={"start": "base"})
        starts = {"base": None, "stage1": join(self.folder, "stage1")}
        return {
            name: StageJob(
                name=name,
                base=c.base,
                lora=c.lora,
                stage=stage,
                cache=self.cache,
                folder=join(self.folder, name),
                start=starts.get(stage.start, stage.start),
                # One name for both: the same samples in the same order, so that "stage 2 alone"
                # differs from "stage 2" by its start only.
                draws=name.removesuffix("_alone"),
                seed=c.seed,
            )
            for name, stage in stages.items()
        }

    @cached_property
    def trained(self) -> dict[str, Ledger]:
        """The ledgers of the trainings."""
        ledgers: dict[str, Ledger] = {}
        for name, job in self.stages.items():
            parts = {
                "cache": self.cache.fingerprint,
                name: job.stage,
                "lora": self.config.lora,
                "seed": self.config.seed,
            }
            if job.stage.start == "stage1":
                parts["stage1"] = ledgers["stage1"].fingerprint
            ledgers[name] = self._ledger(name, parts)
        return ledgers

    @cached_property
    def evaluation(self) -> Evaluation:
        """Images, scores, table."""
        c = self.config
        shown = {"stage1": "stage1", "stage2_alone": "stage2_alone", "stage2": "both"}
        return Evaluation(
            c.base,
            c.evaluate,
            c.pickscore,
            c.table,
            loras={shown[n]: self.trained[n] for n in shown if n in self.trained},
            folder=join(self.folder, "evaluation"),
        )

    @cached_property
    def steps(self) -> list[Step]:
        """The steps in order."""
        c, ev = self.config, self.evaluation
        trainings = [
            Step(name, (ledger,), self._trainer(name), c.base.folder)
            for name, ledger in self.trained.items()
        ]
        return [
            Step("pairs", self.curation.ledgers, self._curate, self._check_curation),
            Step("cache", (self.cache,), self._encode, c.base.folder),
            *trainings,
            Step("evaluation", (ev.images, ev.scores), self._evaluate, self._check_evaluation),
            # The page is made again every time: it takes a second and tells the latest.
            Step("report", (), self._report, lambda: None),
        ]

    def _curate(self) -> Work:
        counts = self.curation.run(self.config.stream)
        log.info("pairs: %d of %d inputs", counts["pair"], sum(counts.values()))
        return Work(sum(counts.values()), "inputs")

    def _encode(self) -> Work:
        rows = rows_to_encode(self.curation.pairs)
        stages = [Encode(self.config.base, self.config.cache)]
        columns = Encode.writes.names
        stream(rows, stages=stages, ledger=self.cache, keep=columns, config=self.config.stream)
        return Work(rows.num_rows, "rows")

    def _trainer(self, name: str) -> Callable[[], Work]:
        def run() -> Work:
            job, ledger = self.stages[name], self.trained[name]
            ledger.begin()
            progress = Progress(
                name, total=job.stage.steps, unit="steps", every=self.config.stream.progress_seconds
            )
            last: dict[str, float] = {}

            def follow(metrics: dict[str, float]) -> None:
                last.update(metrics)
                # A restarted worker repeats steps since its checkpoint: count by its own number.
                progress.add(int(metrics["step"]) - progress.done, note=f"loss {last['loss']:.5f}")
                if self.tracker is not None:
                    values = {f"{name}/{k}": v for k, v in metrics.items() if k != "step"}
                    self.tracker.metrics(values, step=int(metrics["step"]))

            train_stage(job, on_step=follow)
            if last:
                progress.finish(note=f"loss {last['loss']:.5f}")
            ledger.commit(expected=0, counts={"steps": job.stage.steps})
            return Work(job.stage.steps, "steps")

        return run

    def _evaluate(self) -> Work:
        return Work(self.evaluation.run(self.config.stream), "images")

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
            images=ev.images,
            table=ev.tabulate() if ev.scores.state() == "complete" else None,
            published=ev.published() or {},
        )
        write_bytes(join(self.folder, "report", "index.html"), render(data).encode())
        return Work(1, "pages")

    def _check_curation(self) -> None:
        c = self.config
        _check_all([c.saliency.file, c.perturb.folder, c.pickscore.folders])

    def _check_evaluation(self) -> None:
        c = self.config
        _check_all([c.base.folder, c.pickscore.folders])

    def _ledger(self, name: str, parts: Mapping[str, Any]) -> Ledger:
        return Ledger(join(self.folder, name), results_of(parts))


def plan(run: Run, *, only: Collection[str] = ()) -> list[str]:
    """What each step would do, a line each, without doing it."""
    lines = []
    for step in run.steps:
        stale = [ledger for ledger in step.ledgers if ledger.state() == "stale"]
        if only and step.name not in only:
            what = "not part of this job"
        elif stale:
            what = "was made with other settings (--redo replaces it): " + "; ".join(
                stale[0].changes()
            )
        elif step.ledgers and step.done:
            what = "skip, complete"
        elif any(ledger.state() != "absent" for ledger in step.ledgers):
            what = "resume"
        else:
            what = "run"
        lines.append(f"{step.name:<13} {what}")
    return lines


def execute(config: RunConfig, *, only: Collection[str] = (), redo: bool = False) -> Run:
    """Run the steps of a job that are not done yet.

    Args:
        config: all settings.
        only: names of the steps of this job; empty for all.
        redo: replace results that were made with other settings, instead of refusing.

    Raises:
        InputError: wrong settings or data, missing models, or earlier results made otherwise.
    """
    run = Run(config)
    _refuse_or_clear_stale(run, only=only, redo=redo)
    waiting = [step for step in run.steps if not only or step.name in only]
    _require_steps_before(run, waiting)
    checks = [step.check for step in waiting if not step.done]
    _check_all(checks)
    record = _open_record(run)
    start_ray()
    for step in waiting:
        if step.ledgers and step.done:
            log.info("%s: skipped, complete", step.name)
            record["steps"].setdefault(step.name, {"seconds": 0.0, "amount": 0, "unit": "rows"})
            record["steps"][step.name]["state"] = "skipped"
            continue
        began = time.monotonic()
        try:
            work = step.run()
        except BaseException:
            _tracker(run).finish("FAILED")
            raise
        seconds = time.monotonic() - began
        record["steps"][step.name] = {"seconds": seconds, **work._asdict(), "state": "done"}
        _write_record(run, record)
        log.info("%s: done, %d %s, %.0f s", step.name, work.amount, work.unit, seconds)
    _store_results(run)
    return run


def read_record(folder: str) -> dict[str, Any]:
    """What `run.json` says, or an empty record."""
    data = read_bytes(join(folder, "run.json"))
    return {"steps": {}} if data is None else json.loads(data)


def _refuse_or_clear_stale(run: Run, *, only: Collection[str], redo: bool) -> None:
    for step in run.steps:
        for ledger in step.ledgers:
            if ledger.state() != "stale" or (only and step.name not in only):
                continue
            if not redo:
                raise InputError(
                    f"{ledger.path} was made with other settings ({'; '.join(ledger.changes())}). "
                    "Give this variant a name of its own (run=NAME) or replace the old result "
                    "with --redo"
                )
            log.info("%s: cleared (%s)", ledger.path, "; ".join(ledger.changes()))
            ledger.clear()


def _require_steps_before(run: Run, waiting: list[Step]) -> None:
    """A job that does only part of the run needs the steps before it, under the same settings."""
    first = run.steps.index(waiting[0])
    for step in run.steps[:first]:
        if not step.done:
            raise InputError(
                f"{step.name} of {run.folder} is not complete for these settings; run the job "
                "before this one, or jobs/full_pipeline.py, with the same settings"
            )


def _check_all(checks: list[Callable[[], object]]) -> None:
    """Raise all that is missing at once, a line each."""
    missing: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except InputError as error:
            missing.update(dict.fromkeys(str(error).splitlines()))
    if missing:
        raise InputError("\n".join(missing))


def _open_record(run: Run) -> dict[str, Any]:
    """Write the resolved configuration and begin or continue `run.json` and the MLflow run."""
    config = run.config
    settings = flatten(config)
    identity = fingerprint(settings)
    record = read_record(run.folder)
    run.tracker = Tracker(
        config.tracking,
        storage=config.storage,
        name=config.run,
        settings=settings,
        run_id=record.get("mlflow_run_id") if record.get("fingerprint") == identity else None,
    )
    record |= {
        "fingerprint": identity,
        "seed": config.seed,
        "mlflow_run_id": run.tracker.run_id,
        "versions": versions(),
    }
    write_bytes(join(run.folder, "config.toml"), to_toml(config).encode())
    _write_record(run, record)
    return record


def _write_record(run: Run, record: dict[str, Any]) -> None:
    write_bytes(join(run.folder, "run.json"), json.dumps(record, indent=1).encode())


def _tracker(run: Run) -> Tracker:
    assert run.tracker is not None
    return run.tracker


def _store_results(run: Run) -> None:
    """Log table and files to MLflow and close its run."""
    tracker = _tracker(run)
    if run.evaluation.scores.state() == "complete":
        for row in run.evaluation.summary().to_dict("records"):
            tracker.metrics({f"eval/{row['model']}/{row['metric']}": row["mean"]}, step=0)
    if "://" not in run.folder:
        folder = Path(run.folder)
        for name in ("config.toml", "run.json", "evaluation/table.md", "report/index.html"):
            tracker.artifact(folder / name)
        for name in run.trained:
            tracker.artifact(folder / name / "pytorch_lora_weights.safetensors", name)
    tracker.finish("FINISHED")

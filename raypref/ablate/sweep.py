"""Running the rows of tables on Ray Tune: one trial a row, nothing done twice.

A trial asks for no core, so that trials can never hold what their workers wait for. Tune ties all
that a trial starts to the trial's own resources; so the trial only waits for an actor outside of
them, and that actor drives the row. It drives the rows that follow too, and keeps their workers.
Two rows that need the same step at once: the second waits.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.util.queue import Empty, Queue

from raypref.ablate.plan import AblateConfig, PlannedRow, open_run, step_names
from raypref.core.config import InputError
from raypref.core.exhausted import NoRoomError
from raypref.core.ledger import absolute, filesystem, join
from raypref.core.progress import counted
from raypref.engine.cluster import start_ray
from raypref.engine.kept import release, share_cores
from raypref.evaluate.generate import BASE
from raypref.run.execute import carry_out, needs_of_step
from raypref.run.pipeline import Run, Step

log = logging.getLogger(__name__)

# Tune's own tables and files: rows are told of here, and kept in their ledgers.
QUIET = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
# Of Tune's bundle, which may not be empty: a mebibyte of memory, which no worker will miss.
TRIAL = {"CPU": 0.0, "memory": 2.0**20}
LEASE_SECONDS = 60.0  # a lease that is not renewed for so long is free again
POLL_SECONDS = 0.5


@ray.remote(num_cpus=0)
class Leases:
    """Who works on which ledgers. One for the cluster, so that sweeps share it."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[str, float]] = {}  # path -> holder, until

    def take(self, paths: Sequence[str], holder: str) -> bool:
        """Take all of the paths, or none where another holder has one of them."""
        now = time.monotonic()
        for path in paths:
            owner, until = self.held.get(path, (holder, now))
            if owner != holder and until > now:
                return False
        self.held |= dict.fromkeys(paths, (holder, now + LEASE_SECONDS))
        return True

    def give_back(self, holder: str) -> None:
        """Let all of a holder's paths go."""
        self.held = {path: held for path, held in self.held.items() if held[0] != holder}


def leases() -> Any:
    """The cluster's leases; it outlives the driver that asked first, for the others."""
    return Leases.options(  # type: ignore[attr-defined]
        name="raypref-leases", namespace="raypref", get_if_exists=True, lifetime="detached"
    ).remote()


@contextmanager
def turn(held: Any, step: Step) -> Iterator[None]:
    """Hold the lease of a step's ledgers; waits while another row has it.

    A row keeps its workers from one step to the next, but not while it waits.
    """
    holder, waits = uuid.uuid4().hex, False
    while not ray.get(held.take.remote(paths := _touched(step), holder)):
        if not waits:
            release()  # no row holds workers while it waits for another
            log.info("%s: another row is running this step; waiting", step.name)
        waits = True
        time.sleep(POLL_SECONDS)
    ended, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / 6):
            if not ray.get(held.take.remote(paths, holder)):
                lost.set()
                release()  # without workers nothing more is written
                return

    renewing = threading.Thread(target=renew, daemon=True)
    renewing.start()
    try:
        yield
        if lost.is_set():
            raise RuntimeError(
                f"{step.name}: this row stalled for more than {LEASE_SECONDS:.0f} s and another "
                "took the step over; start the sweep again to finish this row"
            )
    finally:
        ended.set()
        renewing.join()  # or it could take what is given back
        ray.get(held.give_back.remote(holder))


def _touched(step: Step) -> list[str]:
    """What the step may write to: pairs can be added to twins that were enough for another row."""
    everything = step.name == "pairs"
    return [own.path for own in step.ledgers() if everything or own.state() != "complete"]


class _Forward(logging.Handler):
    """Sends what a row logs to the driver, which has the terminal."""

    def __init__(self, news: Queue, row: str) -> None:
        super().__init__(logging.INFO)
        self.news, self.row = news, row

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line."""
        self.news.put(f"{self.row} | {record.getMessage()}")


@ray.remote(num_cpus=0)
class Driver:
    """Drives one row after another, and keeps the workers of one for the next.

    Args:
        cores: how many its workers may hold while they wait for work.
    """

    def __init__(self, cores: float) -> None:
        start_ray()
        share_cores(cores)
        logging.getLogger("raypref").setLevel(logging.INFO)

    def drive(
        self, config: AblateConfig, model: str, label: str, news: Queue, parent: str | None
    ) -> dict[str, float] | str:
        """Run a row to its evaluation, on whatever node this is.

        Returns:
            The means of its metrics, or why its settings, data or device cannot do it: that is
            not tried again.
        """
        logger, handler = logging.getLogger("raypref"), _Forward(news, label)
        logger.addHandler(handler)
        held = leases()
        try:
            run = open_run(config, model)
            carry_out(
                run,
                only=step_names(run, model),
                turn=lambda step: turn(held, step),
                parent_run_id=parent,
                pages=False,
                keep_workers=True,
            )
        except (InputError, NoRoomError) as error:
            return str(error)
        finally:
            logger.removeHandler(handler)
        summary = run.evaluation.summary
        own = summary[summary["model"] == model]
        return dict(zip(own["metric"], own["mean"].astype(float), strict=True))


def run_rows(
    rows: Sequence[PlannedRow], config: AblateConfig, *, parents: Mapping[str, str | None]
) -> dict[tuple[str, str], str]:
    """Run rows that are not done yet.

    Args:
        rows: each of them must have settings, and differ in what it shows.
        config: the base settings.
        parents: table to its MLflow run.

    Returns:
        Table and name of each row that failed, to the reason.
    """
    by_key = {f"{row.table}: {row.name}": row for row in rows}
    failed: dict[tuple[str, str], str] = {}
    with news_of_rows() as news:
        at_once = rows_at_once(config, rows)
        cores = share_of(at_once)

        def trial(point: dict[str, Any]) -> None:
            row = by_key[point["row"]]
            assert row.config is not None
            label = f"{row.table} {row.label}"
            told = wait_for(row.config, row.model, label, news, parents[row.table], cores)
            tune.report({"reason": told} if isinstance(told, str) else told)

        space = {"row": tune.grid_search(list(by_key))}
        how = tune.TuneConfig(max_concurrent_trials=at_once)
        for result in run_trials(trial, space, config, how):
            row = by_key[(result.config or {})["row"]]
            reason = (result.metrics or {}).get("reason")
            if result.error is not None:
                reason = last_line(result.error)
            if reason:
                failed[row.table, row.name] = reason
    return failed


_driver: Any = None  # of this process, which runs one trial after another


def wait_for(
    config: AblateConfig,
    model: str,
    label: str,
    news: Queue,
    parent: str | None,
    cores: float,
) -> dict[str, float] | str:
    """Drive a row, from within a trial; returns what `Driver.drive` does."""
    global _driver
    if _driver is None:
        # "DEFAULT" takes it out of the trial's own resources, which have no core to give.
        _driver = Driver.options(scheduling_strategy="DEFAULT").remote(cores)  # type: ignore[attr-defined]
    try:
        told: dict[str, float] | str = ray.get(
            _driver.drive.remote(config, model, label, news, parent)
        )
    except BaseException:
        ray.kill(_driver)  # its workers may be in any state after a failed row
        _driver = None
        raise
    return told


def run_trials(
    trial: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    config: AblateConfig,
    how: tune.TuneConfig,
) -> list[Any]:
    """Run trials; returns their results."""
    os.environ.update(QUIET)
    how.reuse_actors = True  # to start one takes longer than a small row
    folder, name = absolute(join(config.storage, config.run, "tune")), uuid.uuid4().hex[:8]
    log.info("running up to %s at once", counted(how.max_concurrent_trials or 1, "row"))
    tuner = tune.Tuner(
        tune.with_resources(trial, TRIAL),
        param_space=space,
        tune_config=how,
        run_config=tune.RunConfig(
            # Tune's own record of this attempt; what a row has done is in its ledgers.
            name=name,
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=config.ablate.retries),
        ),
    )
    try:
        grid = tuner.fit()
        return [grid[place] for place in range(len(grid))]
    finally:
        fs, path = filesystem(join(folder, name))
        fs.delete_dir(path)


def share_of(at_once: int) -> float:
    """Cores of the cluster for each of so many rows."""
    return float(ray.cluster_resources().get("CPU", 0)) / at_once


def rows_at_once(config: AblateConfig, rows: Sequence[PlannedRow]) -> int:
    """So many rows that each finds room for its largest pool of workers."""
    there = ray.cluster_resources()
    runs = [row.run for row in rows] or [open_run(config, BASE)]
    room = float(config.ablate.at_once or len(rows) or math.inf)
    for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        need = max(_need(run, field) for run in runs)
        if need:
            room = min(room, there.get(kind, 0) / need)
    return max(1, int(room))


def _need(run: Run, field: str) -> float:
    """Cores or GPUs of the largest pool of a run, those of its rewards included."""
    return max(_held(run, step, field) for step in run.steps)


def _held(run: Run, step: Step, field: str) -> float:
    """Those of the largest pool of a step; of a training, whose pools work at once, of all."""
    pools = [need for _, need, _ in needs_of_step(run.config, step)]
    held = [max(1, need.workers) * float(getattr(need, field)) for need in pools]
    return sum(held) if step.trains else max(held, default=0.0)


@contextmanager
def news_of_rows() -> Iterator[Queue]:
    """A queue whose lines are logged here as they come."""
    start_ray()
    queue = Queue(actor_options={"num_cpus": 0})

    def listen() -> None:
        while True:
            try:
                line = queue.get(timeout=60)
            except Empty:
                continue
            if line is None:
                return
            log.info("%s", line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield queue
    finally:
        queue.put(None)
        listener.join(timeout=10)
        queue.shutdown()


def last_line(error: Exception) -> str:
    """What went wrong, without the way to it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

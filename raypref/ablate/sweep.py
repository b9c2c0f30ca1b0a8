"""Running the rows of tables on Ray Tune: one trial a row, nothing done twice.

A trial asks for no core, so that trials can never hold what their workers wait for. Tune ties all
that a trial starts to the trial's own resources; so the trial only waits for a task outside of
them, and that task drives the row. Two rows that need the same step at once: the second waits.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from pyarrow import fs as pafs
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.util.queue import Empty, Queue

from raypref.ablate.plan import AblateConfig, PlannedRow, open_run, plan_row, step_names
from raypref.ablate.table import Range, Row, Search, Table
from raypref.align import checkpoints
from raypref.config import InputError, Resources, fingerprint, flatten
from raypref.evaluate.labels import LOWER_IS_BETTER
from raypref.execute import carry_out
from raypref.ledger import absolute, filesystem, join, read_bytes, write_bytes
from raypref.pipeline import Run, Step
from raypref.streaming import start_ray

log = logging.getLogger(__name__)

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
    """Hold the lease of a step's ledgers; waits while another row has it."""
    holder, waits = uuid.uuid4().hex, False
    while not ray.get(held.take.remote(paths := _touched(step), holder)):
        if not waits:
            log.info("%s: another row is at it; waiting", step.name)
        waits = True
        time.sleep(POLL_SECONDS)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE_SECONDS / 6):
            held.take.remote(paths, holder)

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
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


@ray.remote(num_cpus=0, max_retries=0)
def drive(config: AblateConfig, model: str, label: str, news: Queue, parent: str | None) -> Any:
    """Run a row to its evaluation, on whatever node this is.

    Returns:
        The means of its metrics, or why its settings or data cannot be: that is not tried again.
    """
    start_ray()
    logger = logging.getLogger("raypref")
    logger.setLevel(logging.INFO)
    handler = _Forward(news, label)
    logger.addHandler(handler)
    held = leases()
    try:
        run = open_run(config, model)
        only = step_names(run, model)
        carry_out(run, only=only, turn=lambda step: turn(held, step), parent_run_id=parent)
    except InputError as error:
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
    with _news() as news:

        def trial(point: dict[str, Any]) -> None:
            row = by_key[point["row"]]
            assert row.config is not None
            label = f"{row.table} {row.label}"
            told = _drive(row.config, row.row.model, label, news, parents[row.table])
            tune.report({"reason": told} if isinstance(told, str) else told)

        space = {"row": tune.grid_search(list(by_key))}
        for result in _fit(trial, space, config, rows, tune.TuneConfig()):
            row = by_key[(result.config or {})["row"]]
            reason = (result.metrics or {}).get("reason")
            if result.error is not None:
                reason = _last_line(result.error)
            if reason:
                failed[row.table, row.name] = reason
    return failed


def search_rows(
    name: str, table: Table, config: AblateConfig, *, parent: str | None
) -> tuple[list[PlannedRow], dict[tuple[str, str], str]]:
    """Draw settings, run them rung by rung, stop the weak ones early.

    Settings that an earlier attempt drew come first; what they finished is not done again.

    Returns:
        A row for each setting, with the budget that it reached, and why others failed.
    """
    search = table.search
    assert search is not None
    whole = flatten(config).get(search.budget)
    if not isinstance(whole, int):
        raise InputError(
            f"search.budget='{search.budget}' is not a whole number among the settings"
        )
    budgets = search.budgets(whole)
    folder = absolute(join(config.storage, config.run, name, "points"))
    rows: list[PlannedRow] = []
    failed: dict[tuple[str, str], str] = {}
    with _news() as news:

        def trial(drawn: dict[str, Any]) -> None:
            point = {key: _rounded(value) for key, value in drawn.items()}
            text = json.dumps(point, sort_keys=True)
            write_bytes(join(folder, f"{fingerprint(point)}.json"), text.encode())
            before: PlannedRow | None = None
            for rung, budget in enumerate(budgets):
                row = plan_point(name, point, search, budget, config)
                if row.config is None:
                    raise RuntimeError(row.problem)
                if before is not None:
                    go_on(before.run, row.run, search.budget.split(".")[0])
                told = _drive(row.config, row.row.model, f"{name} {row.label}", news, parent)
                if isinstance(told, str):
                    raise RuntimeError(told)
                reached = {"budget": budget, "share": search.factor**rung}
                tune.report({**told, search.metric: told[search.metric], **reached})
                before = row

        for result in _fit(trial, _space(search), config, rows, _how(search, folder, config)):
            point = {key: _rounded(value) for key, value in (result.config or {}).items()}
            row = plan_point(name, point, search, (result.metrics or {}).get("budget", 0), config)
            rows.append(row)
            if result.error is not None:
                failed[name, row.name] = _last_line(result.error)
    return rows, failed


def plan_point(
    name: str, point: Mapping[str, Any], search: Search, budget: int, config: AblateConfig
) -> PlannedRow:
    """The row of drawn settings at a rung."""
    told = ", ".join(f"{key}={value}" for key, value in point.items())
    label = f"{told}, {search.budget}={budget}"
    row = Row.model_validate({"name": label, "set": {**point, search.budget: budget}})
    return plan_row(name, row, config, seed=config.seed)


def go_on(before: Run, after: Run, stage: str) -> None:
    """Let a longer training continue a shorter one of the same settings: from its last checkpoint.

    At a constant learning rate nothing in a training depends on its length, so the result is the
    same as from the start.
    """
    if stage not in after.trained or after.trained[stage].state() != "absent":
        return
    if after.alignment.stages[stage].schedule != "constant":
        return
    source = join(before.trained[stage].path, "checkpoints")
    found = checkpoints.newest(source)
    if found is not None:
        data = read_bytes(join(source, found))
        assert data is not None
        write_bytes(join(after.trained[stage].path, "checkpoints", found), data)


def _rounded(value: Any) -> Any:
    """Drawn numbers with as many digits as a person would try."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _space(search: Search) -> dict[str, Any]:
    space: dict[str, Any] = {}
    for key, values in search.space.items():
        if isinstance(values, Range) and values.whole:
            draw = tune.lograndint if values.log else tune.randint
            space[key] = draw(int(values.low), int(values.high) + 1)
        elif isinstance(values, Range):
            space[key] = (tune.loguniform if values.log else tune.uniform)(values.low, values.high)
        else:
            space[key] = tune.choice(list(values))
    return space


def _how(search: Search, folder: str, config: AblateConfig) -> tune.TuneConfig:
    """Searcher and scheduler."""
    mode = "min" if search.metric in LOWER_IS_BETTER else "max"
    drawn = [point for point in _drawn(folder) if point.keys() == search.space.keys()]
    drawn = drawn[: search.samples]
    log.info("search: %d of %d settings were drawn before", len(drawn), search.samples)
    searcher: Any
    if search.by == "optuna":
        # Quiet: it tells every trial.
        logging.getLogger("optuna").setLevel(logging.WARNING)
        searcher = OptunaSearch(
            metric=search.metric, mode=mode, seed=config.seed, points_to_evaluate=drawn
        )
    else:
        searcher = BasicVariantGenerator(points_to_evaluate=drawn, random_state=config.seed)
    scheduler = None
    if search.rungs > 1:
        scheduler = ASHAScheduler(
            time_attr="share",
            metric=search.metric,
            mode=mode,
            grace_period=1,
            max_t=search.factor ** (search.rungs - 1),
            reduction_factor=search.factor,
        )
    return tune.TuneConfig(num_samples=search.samples, search_alg=searcher, scheduler=scheduler)


def _drawn(folder: str) -> list[dict[str, Any]]:
    fs, root = filesystem(folder)
    files = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    texts = [read_bytes(join(folder, f.base_name)) for f in sorted(files, key=lambda f: f.mtime)]
    return [json.loads(text) for text in texts if text is not None]


def _drive(
    config: AblateConfig, model: str, label: str, news: Queue, parent: str | None
) -> dict[str, float] | str:
    # "DEFAULT" takes it out of the trial's own resources, which have no core to give.
    task = drive.options(scheduling_strategy="DEFAULT")
    told: dict[str, float] | str = ray.get(task.remote(config, model, label, news, parent))
    return told


def _fit(
    trial: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    config: AblateConfig,
    rows: Sequence[PlannedRow],
    how: tune.TuneConfig,
) -> list[Any]:
    """Run trials, as many at once as there is room for."""
    how.max_concurrent_trials = _at_once(config, rows)
    folder, name = absolute(join(config.storage, config.run, "tune")), uuid.uuid4().hex[:8]
    log.info("running %d rows at once", how.max_concurrent_trials)
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


def _at_once(config: AblateConfig, rows: Sequence[PlannedRow]) -> int:
    """So many rows that each finds room for its largest pool of workers."""
    there = ray.cluster_resources()
    configs = [row.config for row in rows if row.config is not None] or [config]
    room = float(len(rows) or there.get("CPU", 1))
    for kind, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        need = max(_need(c, field) for c in configs)
        if need:
            room = min(room, there.get(kind, 0) / need)
    return min(max(1, int(room)), config.ablate.at_once or len(rows) or 1)


def _need(config: AblateConfig, field: str) -> float:
    """Cores or GPUs of the largest pool of a run."""
    pools = [config.cache.resources, config.evaluate.resources, config.perturb.resources]
    pools += [config.saliency.resources, config.pickscore.resources]
    pools += [stage.resources for stage in (config.stage1, config.stage2, config.sft)]
    return max(_whole(pool) * float(pool.model_dump()[field]) for pool in pools)


def _whole(pool: Resources) -> int:
    return max(1, pool.workers)


@contextmanager
def _news() -> Iterator[Queue]:
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


def _last_line(error: Exception) -> str:
    """What went wrong, without the way to it."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

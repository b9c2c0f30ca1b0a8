"""Running the steps of a pipeline: skip what is done, resume what is half done, refuse the rest.

A step is skipped when its ledgers are complete for the same fingerprint, resumed when they are
half filled, and refused when they were made with other settings (`redo` replaces them).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from raypref.align.reward_groups import all_of
from raypref.core.config import InputError, Resources, Section, flatten, to_toml
from raypref.core.fingerprints import fingerprint
from raypref.core.job_lock import only_job_in
from raypref.core.ledger import Ledger, join, size, write_bytes
from raypref.core.messages import without_secrets
from raypref.core.progress import at_step, counted, passes
from raypref.core.progress import waiting as waiting_for
from raypref.core.tracking import Tracker, require_trackers
from raypref.core.versions import versions
from raypref.engine.cluster import idle_gpus, require_nodes, require_usable_gpus, start_ray
from raypref.engine.kept import released_after
from raypref.models import hub
from raypref.models.lora_config import FILE_NAME
from raypref.pairs.kinds import kind_of
from raypref.rewards.rewards import reward, reward_section
from raypref.run.config import RunConfig
from raypref.run.page import write_page
from raypref.run.pipeline import Run, Step, read_record
from raypref.run.recorded import record_curves, record_evaluation

log = logging.getLogger(__name__)

# The steps of the jobs that do a part of the run; TRAININGS stands for all trainings.
TRAININGS = "trainings"
CURATE = ("pairs", "export", "report")
ALIGN = ("cache", "start", TRAININGS)
EVALUATE = ("evaluation", "fused", "card", "report")


def is_part(step: Step, only: Collection[str]) -> bool:
    """Whether a job does a step: it is named, or a training where all are; empty names all."""
    return not only or step.name in only or (step.trains and TRAININGS in only)


def steps_lacking(run: Run, *, only: Collection[str]) -> list[Step]:
    """The steps before a job's own that it reads and that are not done."""
    first = next((i for i, step in enumerate(run.steps) if is_part(step, only)), 0)
    return [step for step in run.steps[:first] if step.read and not step.done]


def command_of(step: Step) -> str:
    """The command that does a step, as a part of the run."""
    parts = {"curate": CURATE, "align": ALIGN, "evaluate": EVALUATE}
    return next(name for name, steps in parts.items() if is_part(step, steps))


def needs_of_step(config: RunConfig, step: Step) -> Iterator[tuple[str, Resources, int]]:
    """What a step asks for: key of the resources, the resources, workers that it begins with."""
    if step.trains:  # it begins with all its workers, a pool with one
        training = config.train[step.name]
        workers = training.min_workers or training.resources.workers
        yield f"train.{step.name}.resources", training.resources, workers
        for group in config.reward_groups(step.name):  # and with all its actors
            yield f"train.{step.name}: {group.name}", group.need, group.need.workers
        return
    held: dict[str, dict[str, Section]] = {
        "pairs": kind_of(config).used(config),
        "evaluation": {"evaluate": config.evaluate},
    }
    found = held.get(step.name, {step.name: getattr(config, step.name, config)})
    for name, section in found.items():
        need = getattr(section, "resources", None)
        if need is not None:
            yield f"{name}.resources", need, 1
    if step.name == "evaluation":
        for name in config.metrics.rewards:
            own = reward(name, config.pickscore, config.rewards)
            yield f"{reward_section(name)}.resources", own.resources, 1


def changes_of(run: Run, step: Step) -> str:
    """Which settings a step was made with that differ now; empty: it was made with these."""
    for ledger in step.ledgers():
        if ledger.state() == "stale":
            changes = ledger.changes()
            other = [change for change in changes if not change.startswith("source.digest:")]
            if len(other) < len(changes):
                inputs = f"{kind_of(run.config).terms.input}s"
                other.insert(0, f"made from other {inputs} (what source.path lists changed)")
            return "; ".join(other)
    return ""


def execute(
    config: RunConfig,
    *,
    only: Collection[str] = (),
    redo: bool = False,
    announce: Callable[[Run], None] = lambda run: None,
    before: Callable[[], float] = lambda: 0.0,
) -> Run:
    """Run the steps of a job that are not done yet.

    Args:
        config: all settings.
        only: names of the steps of this job; empty for all.
        redo: replace results that were made with other settings, instead of refusing.
        announce: called before the work begins, once nothing is known to be wrong.
        before: seconds that the command has taken so far, which count among the run's.

    Raises:
        InputError: wrong settings or data, missing models, or earlier results made otherwise.
    """
    run = Run(config, redo=redo)
    waiting = [step for step in run.steps if is_part(step, only)]
    require_steps_before(run, only=only)
    stale = _stale(waiting)
    if stale and not redo:
        step = next(step for step in waiting if changes_of(run, step))
        raise InputError(
            f"{step.name} of {run.folder}: {changes_of(run, step)}. Give this variant a name of "
            "its own (run=NAME) or replace the old result with --redo"
        )
    with waiting_for("looking for the models and the data"):
        _check(waiting)  # before anything is written or cleared
    require_trackers(config.tracking, storage=config.storage)
    announce(run)
    with only_job_in(run.folder):
        _clear_stale(run, waiting)
        carry_out(run, only=only, before=before())
    return run


def carry_out(
    run: Run,
    *,
    only: Collection[str] = (),
    turn: Callable[[Step], AbstractContextManager[object]] = nullcontext,
    parent_run_id: str | None = None,
    before: float = 0.0,
    pages: bool = True,
    keep_workers: bool = False,
) -> None:
    """Run the steps of a run that are not done yet.

    Args:
        run: the run; nothing in the way of it was made with other settings.
        only: names of the steps of this job; empty for all.
        turn: held around a step: waits while another run does the same one.
        parent_run_id: the MLflow run that this one is a child of.
        before: seconds that the command had taken, which count among the run's.
        pages: whether to write the page after each step.
        keep_workers: whether another run follows in this process, which may use the workers.

    Raises:
        InputError: wrong settings or data, or missing models.
    """
    began = time.monotonic() - before
    waiting = [step for step in run.steps if is_part(step, only)]
    with waiting_for("looking for the models and the data"):
        _check(waiting)
    hub.tell_workers()
    if any(step.needs and not step.done for step in waiting):
        start_ray()
        _require_nodes(run.config, waiting)
    record_at = without_secrets(run.config.tracking.uri) or "MLflow"
    with waiting_for(f"opening the record of the run ({record_at})"):
        run.tracker, record = _open_record(run, parent_run_id)
    with released_after(only_failed=keep_workers):
        try:
            _take(run, waiting, record, turn, began=began, pages=pages)
        except BaseException:
            run.tracker.finish("FAILED")
            raise
    shared = {step.name for step in waiting if step.trains} - record["steps"].keys()
    record_curves(run.tracker, {name: run.trained[name] for name in sorted(shared)})
    _store_results(run, run.tracker, steps={step.name for step in waiting})


def _take(
    run: Run,
    waiting: list[Step],
    record: dict[str, Any],
    turn: Callable[[Step], AbstractContextManager[object]],
    *,
    began: float,
    pages: bool,
) -> None:
    """Run one step after another, and record each.

    Args:
        run: the run.
        waiting: the steps of the job.
        record: what `run.json` says.
        turn: held around a step.
        began: when the job's time began, by the monotonic clock.
        pages: whether to write the page after each step.
    """
    earlier = record.get("seconds", 0.0)
    for place, step in enumerate(waiting):
        if step.done:
            log.info("%s: skipped, complete", step.name)
            continue
        with turn(step):
            if step.done:  # another run did it in the meantime
                log.info("%s: shared, complete", step.name)
                continue
            # The page tells the time of this moment, and the terminal the same one.
            record["seconds"] = earlier + time.monotonic() - began
            _write_record(run, record)
            if run.redo:  # held-out prompts are known, and with them these ledgers, only now
                _clear_stale(run, [step])
            step_began = time.monotonic()
            passes()  # those of steps before
            with at_step(step.name), waiting_for(f"{step.name}: working"):
                work = step.run()
        seconds = time.monotonic() - step_began
        record["steps"][step.name] = {
            "seconds": seconds,
            "amount": work.amount,
            "unit": work.unit,
            "bytes": sum(size(ledger.path) for ledger in step.ledgers()),
            "device_share": work.busy / seconds if work.busy else None,
            "passes": passes(),
        }
        if step.ledgers():  # not the page: it is written, and a job may end with another step
            record["seconds"] = earlier + time.monotonic() - began
        _write_record(run, record)
        amount = counted(work.amount, work.unit)
        log.info("%s: done, %s, %.0f s", step.name, amount, seconds)
        if pages and _shows(step, waiting[place + 1 :]):
            with waiting_for("page: writing it"):
                write_page(run)


def _shows(step: Step, following: Iterable[Step]) -> bool:
    """Whether a step leaves something new for the page, and the page is not the next step."""
    ahead = [other.name for other in following if not other.done and other.name != "card"]
    return bool(step.ledgers()) and ahead[:1] != ["report"]


def _stale(steps: Iterable[Step]) -> list[Ledger]:
    """What was made with other settings."""
    return [own for step in steps for own in step.ledgers() if own.state() == "stale"]


def _clear_stale(run: Run, steps: Collection[Step]) -> None:
    """Remove what was made with other settings, and the tables about it."""
    if any(step.name == "evaluation" for step in steps):
        for ev in run.evaluations.all:
            if any(own.state() == "stale" for own in ev.ledgers):
                ev.drop_tables()
    for ledger in _stale(steps):
        changes = "; ".join(ledger.changes())
        log.info("%s: cleared (%s)", without_secrets(ledger.path), without_secrets(changes))
        ledger.clear()


def require_steps_before(run: Run, *, only: Collection[str] = ()) -> None:
    """A job that does only part of the run needs the steps before it, under the same settings.

    Raises:
        InputError: names a step that is not complete; or the job has no step at all.
    """
    if not any(is_part(step, only) for step in run.steps):
        raise InputError("trainings=[]: nothing is to be trained; name a training, or evaluate")
    for step in steps_lacking(run, only=only):
        changes = changes_of(run, step)
        raise InputError(
            f"{run.folder} has no {step.name} for these settings yet"
            f"{f' ({changes})' if changes else ''}. Run raypref {command_of(step)} or raypref run "
            "with the same settings first"
        )


def _check(waiting: Iterable[Step]) -> None:
    """Name all that is missing for what is not done yet, at once, a line each."""
    needs = [need for step in waiting if not step.done for need in step.needs]
    missing: dict[str, None] = {}
    for need in needs:
        try:
            need()
        except InputError as error:
            missing[str(error)] = None
    if missing:
        raise InputError("\n".join(missing))


def _require_nodes(config: RunConfig, waiting: Iterable[Step]) -> None:
    """Refuse what a Ray started here can never begin, before the first pass and not after it."""
    gpus: set[float] = set()
    for step in waiting:
        if not step.needs or step.done:
            continue
        needs = [*needs_of_step(config, step)]
        for key, need, workers in needs:
            require_nodes(key, need, workers=workers)
            if need.num_gpus:
                gpus.add(need.num_gpus)
        if step.trains and len(needs) > 1:  # actors beside the workers: all at once
            at_once = [need.model_copy(update={"workers": count}) for _, need, count in needs]
            require_nodes(f"train.{step.name} with its rewards", all_of(at_once), workers=1)
    for num_gpus in sorted(gpus):
        require_usable_gpus(num_gpus)
    if line := idle_gpus(asked=bool(gpus)):
        log.warning("%s", line)


def _open_record(run: Run, parent_run_id: str | None) -> tuple[Tracker, dict[str, Any]]:
    """Write the resolved configuration and begin or continue `run.json` and the MLflow run."""
    config = run.config
    settings = flatten(config)
    identity = fingerprint(settings)
    record = read_record(run.folder)
    same = record.get("fingerprint") == identity
    tracker = Tracker(
        config.tracking,
        storage=config.storage,
        name=config.run.rsplit("/", 1)[-1] if parent_run_id else config.run,
        settings=settings,
        run_id=record.get("mlflow_run_id") if same else None,
        parent_run_id=parent_run_id,
        folder=run.folder,
        group=config.run.rpartition("/")[0],
        ids=record.get("trackers", {}) if same else {},
    )
    # What a training that is not part of the run any more once took is not told of this run.
    names = {step.name for step in run.steps}
    models, before = hub.commits(settings.values()), record.get("models", {})
    for line in hub.moved_heads(before, models):
        log.warning("%s", line)
    record |= {
        "steps": {name: facts for name, facts in record["steps"].items() if name in names},
        "fingerprint": identity,
        "seed": config.seed,
        "mlflow_run_id": tracker.run_id,
        "trackers": tracker.ids,
        "versions": versions(),
        # Of a model that no step needed this time, what it was then.
        "models": {ref: at for ref, at in before.items() if ref in settings.values()} | models,
    }
    write_bytes(join(run.folder, "config.toml"), without_secrets(to_toml(config)).encode())
    _write_record(run, record)
    return tracker, record


def _write_record(run: Run, record: dict[str, Any]) -> None:
    write_bytes(join(run.folder, "run.json"), json.dumps(record, indent=1).encode())


def _store_results(run: Run, tracker: Tracker, *, steps: Collection[str]) -> None:
    """Log table and files of a job's steps to MLflow and close its run."""
    # A job that only curates has no prompts to know an evaluation by.
    made = run.evaluations.complete if "evaluation" in steps else []
    for number, ev in enumerate(made):
        record_evaluation(
            tracker,
            ev.summary,
            at=ev.set.at,
            main=number == 0,
            final=run.alignment.final,
            labels=run.labels,
            page=join(run.folder, "report", "index.html") if "report" in steps else "",
            images=ev.images.ledgers,
        )
    # Those of other commands may be about models that were replaced.
    tables = [f"{ev.set.at}/table.{kind}" for ev in made for kind in ("md", "csv", "tex")]
    pages = ["report/index.html", "report/side_by_side.html"]
    for name in ("config.toml", "run.json", *tables, *pages):
        tracker.artifact(join(run.folder, name))
    for name, ledger in run.trained.items():
        if name in steps and run.config.lora.rank:  # a whole network would be gigabytes
            tracker.artifact(join(ledger.path, FILE_NAME), name)
    tracker.finish("FINISHED")

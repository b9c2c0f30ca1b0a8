"""What the commands do with their settings: the work, and what they say of it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple, TypeVar

from raypref.ablate.cost import Rates
from raypref.ablate.plan import AblateConfig, PlannedStep, load_config
from raypref.core.config import load, load_sections, to_toml
from raypref.core.ledger import join
from raypref.core.progress import duration, since_start
from raypref.core.terminal import say, say_place
from raypref.engine.cluster import submitted
from raypref.judge.arenas import ArenaJobConfig, show_capabilities, terminal_text
from raypref.judge.job import JudgingConfig, judge_rewards
from raypref.pairs.idle import refuse_idle
from raypref.run.config import RunConfig
from raypref.run.execute import execute, require_steps_before
from raypref.run.origins import settings_lines
from raypref.run.outlook import (
    Estimate,
    Expected,
    embedded_note,
    outlook,
    shows_embedded_models,
)
from raypref.run.pipeline import Run, Step, read_record
from raypref.sample.config import SampleJobConfig

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit status

C = TypeVar("C", RunConfig, AblateConfig, JudgingConfig, ArenaJobConfig, SampleJobConfig)


class Given(NamedTuple):
    """What a command line says."""

    table: str  # the first word of `ablate`; empty for other commands
    source: str  # preset or TOML file
    overrides: list[str]
    flags: frozenset[str]
    log: str = "auto"  # form of what is said, one of `FORMS`


def run_steps(given: Given, *, only: Collection[str], result: str) -> int:
    """Run steps of the pipeline: all, or those that `only` names; print what they made.

    Args:
        given: the command line.
        only: names of the steps; empty for all.
        result: what the job makes, named last: `Pairs`, `LoRA` or `Report`.
    """
    if "--dry-run" in given.flags and (lines := settings_lines(given.source, given.overrides)):
        say("\n".join([*lines, ""]))
    config = settle_storage(load(RunConfig, given.source, given.overrides))
    refuse_idle(config, given.overrides)
    if "--resolved" in given.flags:
        print(to_toml(config), end="")
        return DONE
    estimate = _estimate(config.storage)
    if "--dry-run" in given.flags:
        say("\n".join(outlook(run := Run(config), only=only, estimate=estimate)))
        require_steps_before(run, only=only)  # the job itself would refuse in the same words
        return DONE

    def announce(run: Run) -> None:
        say("\n".join([*outlook(run, only=only, estimate=estimate), ""]))

    run = execute(
        config, only=only, redo="--redo" in given.flags, announce=announce, before=since_start
    )
    # Imported here: it brings pandas.
    from raypref.run.ending import result_paths

    if result == "Report":
        say(f"\n{run.evaluations.closing(final=run.alignment.final, labels=run.labels)}\n")
    if shows_embedded_models(config):
        say(f"Note: {embedded_note(config)}")
    say(f"Time: {_time(run)}")
    for name, path in result_paths(run, result=result).items():
        say_place(name, path)
    return DONE


def _time(run: Run) -> str:
    """What the run took, as the page tells it; and this command, where others were before it."""
    whole, own = read_record(run.folder).get("seconds", 0.0), since_start()
    if whole <= own:
        return duration(whole or own)  # a record of an earlier version has no time
    return f"{duration(whole)} for the run, {duration(own)} for this command"


def _estimate(storage: str) -> Estimate:
    """What steps take by earlier runs on this machine's disk."""
    try:
        rates = None if "://" in storage else Rates(storage)
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        rates = None  # a record that was damaged, or is of another version

    def estimate(run: Run, step: Step, amount: float | None) -> Expected | None:
        cost = rates and rates.cost(PlannedStep(step, run), amount)
        return Expected(cost.seconds, cost.bytes) if cost else None

    return estimate


def make_tables(given: Given) -> int:
    """Make tables, or print their plan."""
    from raypref.ablate.driver import make, plan_text, tables_of

    tables = tables_of(given.table)
    config = settle_storage(load_config(given.source, given.overrides))
    if "--resolved" in given.flags:
        print(to_toml(config), end="")
        return DONE
    for name, own in tables.items():
        say(f"{name}: {own.title}")
    if "--dry-run" in given.flags:
        say(plan_text(tables, config))
        return DONE
    say(f"planning in {join(config.storage, config.run)}")
    made = make(tables, config)
    for each in made:
        say(f"\n{each.text}\n")
        say_place("Page", each.page)
    return FAILED if any(each.failed for each in made) else DONE


def judge(given: Given) -> int:
    """Compare rewards with people's choices."""
    config = load_sections(JudgingConfig, given.source, given.overrides, of=RunConfig)
    config = settle_storage(config)
    if "--resolved" in given.flags:
        print(to_toml(config), end="")
        return DONE
    folder, tables = judge_rewards(config)
    for name, made in tables.items():
        say(f"\n{name}\n{made.to_string(index=False, float_format='{:.3f}'.format)}")
    say()
    say_place("Page", f"{folder}/index.html")
    return DONE


def sample(given: Given) -> int:
    """Draw images at inference time."""
    from raypref.sample.job import Sampling

    config = settle_storage(load(SampleJobConfig, given.source, given.overrides))
    if "--resolved" in given.flags:
        print(to_toml(config), end="")
        return DONE
    sampling = Sampling(config)
    sampling.check()
    say("\n".join(sampling.outlook()))
    if "--dry-run" in given.flags:
        return DONE
    sampling.make(redo="--redo" in given.flags)
    say(f"\n{sampling.costs().to_string(index=False, float_format='{:.3f}'.format)}\n")
    say_place("Images", f"{sampling.folder}/images")
    say_place("Page", f"{sampling.folder}/index.html")
    return DONE


def show_arena(given: Given) -> int:
    """Fit the arena to people's choices and show the generators' capabilities."""
    overrides = ["pairs.kind=labelled", *given.overrides]
    config = load_sections(ArenaJobConfig, given.source, overrides, of=RunConfig)
    config = settle_storage(config)
    if "--resolved" in given.flags:
        print(to_toml(config), end="")
        return DONE
    folder, found, counts = show_capabilities(config)
    say(f"\n{terminal_text(found, counts)}\n")
    say_place("Numbers", f"{folder}/arena.json")
    say_place("Page", f"{folder}/index.html")
    return DONE


def settle_storage(config: C) -> C:
    """A submitted job runs in a copy of the working directory that Ray deletes: do not write there.

    A relative storage then means a folder below the home directory.
    """
    if not submitted() or "://" in config.storage or config.storage.startswith(("/", "~")):
        return config
    storage = str(Path.home() / config.storage)
    logging.info("submitted as a Ray job: storage=%s is %s", config.storage, storage)
    return config.model_copy(update={"storage": storage})

"""Tables from their files to their results: plan, run what is missing, record, write.

What a table leaves in `<storage>/<run>/<table>/`: `index.html`, `table.md`, `table.csv`,
`figure.svg`, `config.toml`, `run.json` and a folder for every row with its settings and record.
Ledgers are in `<storage>/steps/`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypref.ablate.cost import Rates, describe_plan
from raypref.ablate.plan import (
    AblateConfig,
    PlannedRow,
    check_search,
    distinct_steps,
    open_run,
    planned_rows,
    require_prompts,
    step_names,
)
from raypref.ablate.table import Table, names, read_table
from raypref.core.config import InputError, flatten, to_toml
from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import absolute, join, write_bytes
from raypref.core.messages import without_secrets
from raypref.core.tracking import Tracker, require_trackers
from raypref.evaluate.generate import BASE
from raypref.models import hub
from raypref.run.execute import carry_out
from raypref.run.pipeline import read_record
from raypref.sources.remembered import unchanged

if TYPE_CHECKING:
    from raypref.ablate.page import Placed

log = logging.getLogger(__name__)

FILLED_FROM = {
    "votes": "ablate.votes",
    "costs": "times that runs in the storage recorded",
    "models": "these settings",
}


@dataclass
class Made:
    """A table that was made: its page, what is printed, why rows failed that could have run."""

    page: str
    text: str
    failed: dict[str, str]


def tables_of(source: str) -> dict[str, Table]:
    """The tables that a command names: one, a file, or all of the paper's."""
    of_paper = [n for n in names() if read_table(n).paper]
    chosen = of_paper if source == "all" else [source]
    return {
        Path(name).stem if name.endswith(".toml") else name: read_table(name) for name in chosen
    }


@unchanged()
def plan_text(tables: dict[str, Table], config: AblateConfig) -> str:
    """What the tables would do, without doing it."""
    tables = _of_family(tables, config)
    _check(tables, config)
    rows = [row for name, table in tables.items() for row in planned_rows(name, table, config)]
    text = describe_plan(rows, Rates(config.storage))
    searches = [
        f"{name}: up to {table.search.samples} settings at up to {table.search.rungs} rungs, drawn "
        "as results come in: not in the sums above"
        for name, table in tables.items()
        if table.search is not None
    ]
    given = [
        f"{name}: no runs; filled from what is there ({FILLED_FROM[table.shows]})"
        for name, table in tables.items()
        if table.shows != "runs"
    ]
    plan = [text] if rows or searches else []
    return "\n".join([*plan, *searches, *given])


@unchanged()
def make(tables: dict[str, Table], config: AblateConfig) -> list[Made]:
    """Run the rows of all tables that are not done, then write every table."""
    from raypref.ablate.search import search_rows
    from raypref.ablate.sweep import run_rows

    tables = _of_family(tables, config)
    _check(tables, config)
    planned = {name: planned_rows(name, table, config) for name, table in tables.items()}
    everything = [row for rows in planned.values() for row in rows]
    if everything:
        log.info("plan:\n%s", describe_plan(everything, Rates(config.storage)))
    trackers = {name: _begin(name, config) for name in tables}
    parents = {name: tracker.run_id for name, tracker in trackers.items()}
    failed: dict[tuple[str, str], str] = {}
    waiting = _distinct(row for row in everything if row.config and not _done(row))
    if waiting:
        _find_models(waiting)
        failed |= run_rows(waiting, config, parents=parents)
    for name, table in tables.items():
        if table.search is not None:
            found, wrong = search_rows(name, table, config, parent=parents[name])
            planned[name] += found
            failed |= wrong
    failed |= _shared(everything, waiting, failed)
    return [
        _write(name, table, planned[name], config, failed=failed, tracker=trackers[name])
        for name, table in tables.items()
    ]


def _of_family(tables: dict[str, Table], config: AblateConfig) -> dict[str, Table]:
    """Those that have anything for the base's family.

    Raises:
        InputError: none has.
    """
    family = config.base.family
    kept = {
        name: table
        for name, table in tables.items()
        if table.shows != "runs"
        or table.search is not None
        or any(not row.families or family in row.families for row in table.all_rows())
    }
    for name, table in tables.items():
        if not kept:
            known = ", ".join(sorted({f for row in table.rows for f in row.families}))
            raise InputError(f"{name} has no row of base.family={family}; it has rows of {known}")
    return kept


def _find_models(rows: Iterable[PlannedRow]) -> None:
    """Look for the models of all rows before Ray starts: its workers load the same commits."""
    for planned in distinct_steps(rows):
        for need in planned.step.needs:
            with suppress(InputError):  # the row itself says so
                need()
    hub.tell_workers()


def _check(tables: dict[str, Table], config: AblateConfig) -> None:
    """See before any work that a table can be decided, drawn and recorded; raises InputError."""
    require_trackers(config.tracking, storage=config.storage)
    if any(table.shows == "runs" for table in tables.values()):
        require_prompts(config)
    settings = flatten(config)
    for name, table in tables.items():
        if table.x and not isinstance(settings.get(table.x), int | float):
            raise InputError(f"{name}: x: '{table.x}' is not a number among the settings")
        if table.search is not None:
            check_search(table.search, config)


def _done(row: PlannedRow) -> bool:
    return row.steps[-1].done


def _identity(row: PlannedRow) -> tuple[str, ...]:
    """What a row shows: rows of several tables, or of several seeds, may show the same."""
    return tuple(ledger.path for ledger in row.steps[-1].ledgers())


def _distinct(rows: Iterable[PlannedRow]) -> list[PlannedRow]:
    return list({_identity(row): row for row in reversed(list(rows))}.values())[::-1]


def _shared(
    rows: Sequence[PlannedRow], ran: Sequence[PlannedRow], failed: dict[tuple[str, str], str]
) -> dict[tuple[str, str], str]:
    """Failures of rows that failed in another table, where the same row was run."""
    reasons = {
        _identity(row): failed[row.table, row.name]
        for row in ran
        if (row.table, row.name) in failed
    }
    return {
        (row.table, row.name): reasons[_identity(row)]
        for row in rows
        if row.config and _identity(row) in reasons
    }


def _begin(name: str, config: AblateConfig) -> Tracker:
    """The table's MLflow run, gone on with where the same command was run before."""
    folder = absolute(join(config.storage, config.run, name))
    settings = flatten(config)
    record, identity = read_record(folder), fingerprint(settings)
    tracker = Tracker(
        config.tracking.model_copy(update={"also": ()}),  # its rows are recorded there as a group
        storage=config.storage,
        name=name,
        settings=settings,
        run_id=record.get("mlflow_run_id") if record.get("fingerprint") == identity else None,
    )
    told: dict[str, Any] = {"fingerprint": identity, "mlflow_run_id": tracker.run_id, "steps": {}}
    write_bytes(join(folder, "run.json"), json.dumps(told, indent=1).encode())
    write_bytes(join(folder, "config.toml"), without_secrets(to_toml(config)).encode())
    return tracker


def _write(
    name: str,
    table: Table,
    rows: Sequence[PlannedRow],
    config: AblateConfig,
    *,
    failed: dict[tuple[str, str], str],
    tracker: Tracker,
) -> Made:
    """Write a table and record it; returns what is printed."""
    from raypref.ablate import beside, claims, figures, page, results
    from raypref.ablate.terminal import printed

    folder = absolute(join(config.storage, config.run, name))
    own = {row: reason for (of, row), reason in failed.items() if of == name}
    for row in rows:  # those that found everything done were not run: they get their record here
        if (
            row.config
            and row.name not in own
            and _done(row)
            and not read_record(row.run.folder)["steps"]
        ):
            only = step_names(row.run, row.model)
            carry_out(row.run, only=only, parent_run_id=tracker.run_id, pages=False)
    if table.shows == "models":
        text, at = beside.models_markdown(table, config), join(folder, "table.md")
        write_bytes(at, text.encode())
        tracker.artifact(at)
        tracker.finish("FINISHED")
        return Made(at, text, {})
    if table.shows == "runs":
        reference = open_run(config, BASE)
        found = results.gather(table, rows, reference=reference, failed=own)
    else:
        found = beside.gather_beside(table, config)
    if beside.STYLE in table.columns:
        found = beside.with_stylization(found, config.ablate.stylization)
    tested = claims.tested(found, resamples=config.table.resamples)
    runs = _placed(rows)
    parts = [
        results.table_markdown(found),
        results.spread(found),
        claims.what_moved(found, tested),
        _where(runs),
    ]
    places = {r.row.name: _place(r, table.x) for r in rows if r.config and table.x}
    html = page.render(
        found,
        tested,
        lead=found.how or _lead(config, rows),
        banner=results.BANNER if found.paper == results.REAL_MODELS else "",
        positions=places,
        runs=runs,
    )

    def keep(file: str, content: str) -> None:
        write_bytes(join(folder, file), content.encode())
        tracker.artifact(join(folder, file))

    keep("index.html", html)
    keep("table.md", "\n".join(part for part in parts if part))
    keep("table.csv", results.table_csv(found))
    if table.shows == "runs" and figures.is_drawn(found):
        keep("figure.svg", figures.draw(found, positions=places))
    tracker.table("numbers", *results.as_rows(found))
    tracker.describe(f"{table.title}. Page: `{join(folder, 'index.html')}`")
    tracker.finish("FINISHED")
    waits = {row.row.name for row in rows if not row.given}
    waits |= {*found.problems} if table.shows != "runs" else set()
    problems = {name: why for name, why in found.problems.items() if name not in waits}
    return Made(join(folder, "index.html"), printed(found, tested), problems)


def _lead(config: AblateConfig, rows: Sequence[PlannedRow]) -> str:
    """What was run, in one line."""
    done = sum(1 for row in rows if row.config and _done(row))
    seeds = f", {config.ablate.seeds} training seeds" if config.ablate.seeds > 1 else ""
    return f"{done} of {len(rows)} runs are done; base model {config.base.model}{seeds}."


def _place(row: PlannedRow, key: str) -> float:
    assert row.config is not None
    return float(flatten(row.config)[key])


def _placed(rows: Sequence[PlannedRow]) -> list[Placed]:
    """Where each row's run is, in the storage and in MLflow."""
    from raypref.ablate.page import Placed

    return [
        Placed(
            row.label,
            row.seed,
            read_record(row.run.folder).get("mlflow_run_id") or "none",
            row.run.folder,
        )
        for row in rows
        if row.config and _done(row)
    ]


def _where(runs: Sequence[Placed]) -> str:
    """The same as Markdown."""
    lines = ["| row | seed | MLflow run | folder |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {run.label} | {run.seed} | {run.mlflow} | {without_secrets(run.folder)} |"
        for run in runs
    ]
    return "\n".join([*lines, ""])

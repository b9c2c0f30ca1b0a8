"""Table numbers that are not made by a run: votes, recorded costs, scores from elsewhere."""

from __future__ import annotations

import csv
import math
import statistics as plain
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from raypref.ablate.cost import gpus_of, recorded_runs, workers_of
from raypref.ablate.plan import AblateConfig
from raypref.ablate.results import PAPER, REAL_MODELS, Results, embedded
from raypref.ablate.table import Table, model_rows
from raypref.align import plan as align_plan
from raypref.core.config import InputError, flatten
from raypref.core.messages import without_secrets
from raypref.evaluate import statistics, tables
from raypref.evaluate.labels import ordered, plain_label
from raypref.study.reading import read_votes
from raypref.study.results import balance, votes_that_count

PHOTOGRAPHS = 25_096  # that the paper curated; its costs are of all of them
PASSES = ("measured", "twins", "scored")
ALL = "all"
# What two runs have in common whose costs are compared. Runs of earlier versions lack the later.
LATER = ("images.size", "perturb.size", "perturb.dtype", "pickscore.dtype", "pickscore.quick")
ALIKE = ("perturb.model", "perturb.kind", "perturb.steps", "pickscore.model", *LATER)
STYLE = "stylization"


def gather_beside(table: Table, config: AblateConfig) -> Results:
    """The numbers of a table of votes or costs, "not run" where there are none.

    Raises:
        InputError: the file of votes is wrong; names the line.
    """
    labels = {row.name: row.label or row.name for row in table.rows}
    # The pairs of both base models are made by SD-1.5, and so their cost is published once.
    family = "sd15" if table.shows == "costs" else config.base.family
    published = tables.published(table.published, family) if table.published else {}
    fill = _costs if table.shows == "costs" else _votes
    scores, summary, problems, how = fill(table, config)
    paper = REAL_MODELS if table.shows == "costs" and embedded(config) else PAPER
    return Results(
        *(table, scores, summary, published, labels, problems, list(table.notes), paper, how)
    )


Filled = tuple[pd.DataFrame, pd.DataFrame, dict[str, str], str]  # scores, summary, problems, how


def _votes(table: Table, config: AblateConfig) -> Filled:
    """Percent of prompts per outcome, or won per category, with an interval over prompts."""
    rows = [row.name for row in table.rows]
    if not config.ablate.votes:
        return _nothing(rows, "not run: add ablate.votes=... (columns in docs/ablations.md)")
    votes = read_votes(config.ablate.votes, key="ablate.votes")
    votes = votes_that_count(votes)
    ours = align_plan.final(align_plan.in_order(config.trainings, config.train))
    found = {row: _shares(votes, ours, row, table.columns) for row in rows}
    problems = {
        row: f"not run: no votes between {ours} and {row} in ablate.votes"
        for row, own in found.items()
        if not own
    }
    lines = [line for own in found.values() for line in own]
    if not lines:
        return _nothing(rows, problems[rows[0]])
    scores = pd.DataFrame(lines, columns=[*statistics.SCORES, "training_seed"])
    summary = statistics.summarise(scores, base="", resamples=config.table.resamples)
    summary = _arranged(summary, rows, table.columns)
    sides = votes[["left", "right"]]
    used = votes[(sides == ours).any(axis=1) & sides.isin(rows).any(axis=1)]
    how = (
        f"Percent of prompts by the majority of {used['rater'].nunique()} raters, "
        f"{len(used):,} votes [95% interval, bootstrap over prompts]. Even votes are a tie; a vote "
        "for neither counts for neither."
    )
    return scores, summary, problems, how


def _shares(
    votes: pd.DataFrame, ours: str, other: str, columns: Sequence[str]
) -> list[tuple[Any, ...]]:
    """A score of 100 or 0 per prompt and column."""
    found = []
    for prompt in balance(votes, ours, other).itertuples():
        lead = prompt.first - prompt.second
        category = prompt.category.lower().replace("-", "_").replace(" ", "_")
        held = {"win": lead > 0, "tie": lead == 0, "lose": lead < 0, category: lead > 0}
        name = prompt.prompt_id
        found += [
            (name, name, "votes", other, column, 100.0 * held[column], 0)
            for column in columns
            if column in held
        ]
    return found


def _costs(table: Table, config: AblateConfig) -> Filled:
    """Images per second and worker of each pass, the median over runs with the same models."""
    rows = [row.name for row in table.rows]
    own = flatten(config)
    alike = [
        (settings, record["steps"]["pairs"]["passes"])
        for settings, record in recorded_runs(config.storage)
        if record.get("steps", {}).get("pairs", {}).get("passes") and _same_models(settings, own)
    ]
    rates: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for settings, passes in alike:
        for name in PASSES:
            taken = passes.get(name, {})
            if taken.get("amount") and taken.get("seconds"):
                workers = workers_of(settings, name)
                rates.setdefault(name, []).append(taken["amount"] / taken["seconds"] / workers)
                shares.setdefault(name, []).append(gpus_of(settings, name))
    where = without_secrets(config.storage)
    why = f"not run: no run in {where} recorded this pass with these models"
    if not rates:
        return _nothing(rows, why)
    lines, hours = [], []
    for name, found in rates.items():
        rate, share = plain.median(found), plain.median(shares[name])
        hours.append(PHOTOGRAPHS / rate / 3600 * share)
        lines += [(name, "per_second", rate), (name, "gpu_hours", hours[-1])]
    if len(hours) == len(PASSES):
        lines.append((ALL, "gpu_hours", sum(hours)))
    summary = pd.DataFrame(
        [(*line, *[math.nan] * 5, 0, 0, 0) for line in lines], columns=list(statistics.SUMMARY)
    )
    with_gpu = float(own["perturb.resources.num_gpus"]) > 0
    hold = (
        "GPU hours are a worker's hours times the share of a GPU that it holds"
        if with_gpu
        else "No worker holds a GPU, so GPU hours are a worker's hours"
    )
    how = (
        f"Images per second and worker: the median over {len(alike)} runs in {where}, starts and "
        f"loading included. {hold}, for {PHOTOGRAPHS:,} photographs at that rate."
    )
    problems = {row: why for row in rows if row not in set(summary["model"])}
    scores = pd.DataFrame(columns=[*statistics.SCORES, "training_seed"])
    return scores, _arranged(summary, rows, table.columns), problems, how


def _same_models(settings: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether a run painted and scored as these settings do, at their sizes and precisions."""
    told = {key: settings.get(key.split(".")[0], {}).get(key.split(".")[1]) for key in ALIKE}
    return all(told[key] in (own[key], None) for key in LATER) and all(
        told[key] == own[key] for key in ALIKE if key not in LATER
    )


def _nothing(rows: Sequence[str], why: str) -> Filled:
    scores = pd.DataFrame(columns=[*statistics.SCORES, "training_seed"])
    return scores, pd.DataFrame(columns=list(statistics.SUMMARY)), dict.fromkeys(rows, why), ""


def _arranged(summary: pd.DataFrame, rows: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """The rows in the order of the table, their metrics in that of its columns."""
    own = summary.assign(
        place=summary["model"].map([*rows].index), column=summary["metric"].map([*columns].index)
    )
    own = own.sort_values(["place", "column"], kind="stable")
    return own.drop(columns=["place", "column"]).reset_index(drop=True)


def with_stylization(results: Results, path: str) -> Results:
    """The same numbers and, of rows that a file names, their stylization.

    Args:
        results: of a table with a column `stylization`.
        path: CSV with the columns `method` (a row's name or label) and `value`; empty: none.

    Raises:
        InputError: no such file, no such column or row, or a value that is no number.
    """
    if not path:
        results.notes.append("Stylization was not given (ablate.stylization).")
        return results
    values = _read_values(path, results.labels)
    base = values.get(results.table.base, math.nan)
    lines = []
    for row, value in values.items():
        gain = math.nan if row == results.table.base else value - base
        nan = math.nan
        lines.append((row, STYLE, value, nan, nan, gain, nan, nan, 0, 0, 0))
    added = pd.DataFrame(lines, columns=list(statistics.SUMMARY))
    parts = [part for part in (results.summary, added) if not part.empty]
    summary = pd.concat(parts, ignore_index=True)
    metrics = ordered(summary["metric"], [*results.table.columns])
    results.summary = _arranged(summary, [*results.labels], metrics)
    results.notes.append(f"{plain_label(STYLE)} is what ablate.stylization says.")
    return results


def _read_values(path: str, labels: Mapping[str, str]) -> dict[str, float]:
    """Rows of the table to their values in a file."""
    names = {label: name for name, label in labels.items()} | {name: name for name in labels}
    file, found = Path(path).expanduser(), dict[str, float]()
    if not file.is_file():
        raise InputError(f"ablate.stylization: no file '{path}'")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := {"method", "value"} - {*(reader.fieldnames or ())}:
            raise InputError(f"{path}: no column {', '.join(sorted(missing))}")
        for row in reader:
            where, method = f"{path}, line {reader.line_num}", (row["method"] or "").strip()
            if method not in names:
                raise InputError(
                    f"{where}: method={method} is no row; there are {', '.join(labels)}"
                )
            try:
                found[names[method]] = float(row["value"])
            except (TypeError, ValueError):
                raise InputError(f"{where}: value={row['value']} is not a number") from None
    return found


def models_markdown(table: Table, config: AblateConfig) -> str:
    """The table of models: what each is, the paper's address, what the settings name."""
    rows = model_rows(table, config, family=config.base.family)
    lines = [("setting", "paper", "these settings"), ("---",) * 3, *rows]
    return "\n".join([f"## {table.title}", "", *map(tables.markdown_row, lines), ""])

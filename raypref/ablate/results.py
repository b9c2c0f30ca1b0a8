"""What came out of a table: means with intervals, the published ones beside, spread over seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from raypref.ablate.plan import PlannedRow
from raypref.ablate.table import Table
from raypref.core.schemes import is_embedded
from raypref.evaluate import statistics, tables
from raypref.evaluate.distance import cmmd_summary, fid_summary
from raypref.evaluate.labels import (
    lower_is_better,
    metric_label,
    metric_names,
    neutral,
    ordered,
    plain_label,
    score_text,
)
from raypref.pairs.kinds import kind_of
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run

PAPER = "paper"
REAL_MODELS = "paper (real models)"  # beside scores of the embedded models
BANNER = (
    "These rows were made with the embedded models of 64x64 pictures and scored by models of the "
    "same rendered world. Compare rows with each other. The published values are of real models, "
    "on another scale."
)


@dataclass
class Results:
    """All numbers of a table.

    Attributes:
        scores: a row an image and metric (`statistics.SCORES`), `model` being the row's name and
            `training_seed` its training.
        summary: `statistics.SUMMARY` by row and metric, over the images of all training seeds.
        published: the paper's means by row and metric.
        labels: name of each row to what people read, in the order of the table.
        problems: rows without numbers, with the reason.
        notes: what a reader must know.
        paper: what published values are called.
        how: what the numbers are, where they are not means over images.
    """

    table: Table
    scores: pd.DataFrame
    summary: pd.DataFrame
    published: tables.Published
    labels: dict[str, str]
    problems: dict[str, str]
    notes: list[str] = field(default_factory=list)
    paper: str = PAPER
    how: str = ""

    def metrics(self) -> list[str]:
        """All metrics with numbers, the columns of the paper's table first; those without any."""
        return list(dict.fromkeys(self.summary["metric"])) or [*self.table.columns] or ["pickscore"]


def gather(
    table: Table, rows: Sequence[PlannedRow], *, reference: Run, failed: Mapping[str, str]
) -> Results:
    """Read what the rows left.

    Args:
        table: the table.
        rows: its rows, for all training seeds.
        reference: whose pairs' photographs the distance of all rows is measured to.
        failed: name of a planned row that failed, to the reason.
    """
    frames, embeddings, notes = [], [], [*table.notes]
    labels: dict[str, str] = {}
    problems: dict[str, str] = {}
    for row in rows:
        taken = {label for name, label in labels.items() if name != row.row.name}
        own_label = f"{row.label} ({row.row.name})" if row.label in taken else row.label
        labels.setdefault(row.row.name, own_label)
        reason = failed.get(row.name) or row.problem
        if not reason and not row.steps[-1].done:
            reason = "not run"
        if reason:
            seed = "" if row.problem else f" (seed {row.seed})"
            problems.setdefault(row.row.name, f"{reason}{seed}")
            continue
        evaluation = row.run.evaluation
        long = evaluation.long[evaluation.long["model"] == row.model]
        frames.append(_named(long, row))
        if evaluation.metrics.distance:
            group = evaluation.scores(f"embedding_{evaluation.metrics.embedder}")
            own = group.ledgers[row.model].table(["model", "prompt_id", "embedding"])
            embeddings.append(_named(own.to_pandas(), row))
        notes += _shortfall(row)
    resamples, family = reference.config.table.resamples, reference.config.base.family
    published = tables.published(table.published, family) if table.published else {}
    paper = REAL_MODELS if embedded(reference.config) else PAPER
    if not frames:
        nothing = pd.DataFrame(columns=[*statistics.SCORES, "training_seed"])
        empty = pd.DataFrame(columns=list(statistics.SUMMARY))
        return Results(table, nothing, empty, published, labels, problems, notes, paper)
    scores = pd.concat(frames, ignore_index=True)
    summary = statistics.summarise(scores, base=table.base, resamples=resamples)
    others = _of_other_prompts(scores, base=table.base)
    notes += [
        f"{labels[name]}: no gains, its prompts are not those of the base." for name in others
    ]
    parts = [summary, statistics.human_preference(summary, base=table.base)]
    photographs = reference.evaluation.reference
    holes = reference.config.evaluate.hole_files
    of = "the holes that are painted" if holes else "the base settings' pairs"
    if embeddings and table.base in set(scores["model"]):
        if photographs.state() == "complete":
            real = np.stack(photographs.table(["embedding"])["embedding"].to_numpy())
            every = pd.concat(embeddings, ignore_index=True)
            metric, _ = reference.config.metrics.distances
            parts.append(
                cmmd_summary(every, real, base=table.base, resamples=resamples, metric=metric)
            )
            parts.append(fid_summary(every, real, base=table.base))
            notes.append(f"Distances are to the photographs of {of}.")
        else:
            notes.append(f"No CMMD and FID: no row has {of}.")
    summary = pd.concat([part for part in parts if not part.empty], ignore_index=True)
    summary.loc[summary["model"].isin(others), ["gain", "gain_low", "gain_high"]] = math.nan
    order = {name: place for place, name in enumerate(labels)}
    summary = summary.sort_values("model", key=lambda names: names.map(order), kind="stable")
    measured = set(scores["metric"])
    missing = [metric for metric in table.columns if metric not in measured]
    if missing:
        names = ", ".join(plain_label(metric) for metric in missing)
        notes.append(f"Columns of the paper that were not measured (metrics.rewards): {names}.")
    summary = statistics.arranged(summary, first=table.columns)
    return Results(table, scores, summary, published, labels, problems, notes, paper)


def embedded(config: RunConfig) -> bool:
    """Whether the base model or the first scorer is one that is made up, as those of `tiny`."""
    return is_embedded(config.base.model, config.pickscore.model)


def _named(frame: pd.DataFrame, row: PlannedRow) -> pd.DataFrame:
    named = frame.assign(model=row.row.name, training_seed=row.seed)
    if "seed" in named:  # of the image; the trainings of several seeds are told apart
        named["seed"] = [f"{row.seed}/{seed}" for seed in named["seed"]]
    return named


def _of_other_prompts(scores: pd.DataFrame, *, base: str) -> list[str]:
    """Rows whose prompts of the same number are not the base's: they cannot be paired with it."""
    prompts = scores[["model", "prompt_id", "prompt"]].drop_duplicates()
    of_base = prompts[prompts["model"] == base].set_index("prompt_id")["prompt"]
    known = prompts[prompts["prompt_id"].isin(of_base.index)]
    differ = known["prompt"] != known["prompt_id"].map(of_base)
    return list(known[differ]["model"].unique())


def _shortfall(row: PlannedRow) -> list[str]:
    """Says where fewer pairs passed than the row asks for."""
    pairs, wanted = row.run.curation.pairs, kind_of(row.run.config).asked(row.run.config)
    there = pairs.count() if wanted and pairs.state() == "complete" else wanted
    return [f"{row.label}: only {there} of {wanted} pairs passed."] if there < wanted else []


def table_markdown(results: Results) -> str:
    """The table in the paper's form; rows that failed stand at their place with the reason."""
    labels = {name: _one_line(label) for name, label in results.labels.items()}
    summary = results.summary.assign(model=results.summary["model"].map(labels))
    paper = {(labels[m], k): v for (m, k), v in results.published.items() if m in labels}
    metrics = results.metrics()
    grid = tables.head(metrics)
    if not summary.empty:
        grid = tables.markdown(summary, published=paper).partition("\n\n")[0]
    head, rule, *lines = grid.splitlines()
    there = iter(lines)
    with_numbers = set(results.summary["model"])
    body = [
        next(there)
        if name in with_numbers
        else _without_numbers(label, results.problems.get(name, "no score"), metrics, paper)
        for name, label in labels.items()
    ]
    if results.paper != PAPER:
        body = [_renamed(line, results.paper) for line in body]
    above = [f"> {BANNER}", ""] if results.paper == REAL_MODELS else []
    text = [
        f"## {results.table.title}",
        "",
        *above,
        head,
        rule,
        *body,
        "",
        *under_table(results, marks=tables.MARKS),
    ]
    return "\n".join(text) + "\n"


def _renamed(line: str, paper: str) -> str:
    """A row of the table whose published values are called something else."""
    label, bar, cells = line.partition(" | ")
    return label + bar + re.sub(r"\bpaper (?=-?\d)", f"{paper} ", cells)


def under_table(results: Results, *, marks: str = "") -> list[str]:
    """What stands under the table: how it was computed, rows in part, what a reader must know.

    Args:
        results: all numbers of the table.
        marks: how the best means are marked; empty: they are not.
    """
    metrics = set(results.metrics())
    lines = []
    if not results.summary.empty:
        how = results.how or tables.footnote(results.summary)
        lines.append(f"{how} {marks}".strip())
    shown = {key for key in results.published if key[0] in results.labels and key[1] in metrics}
    if shown:
        lines.append(tables.PAPER)
    lines += [
        f"{_one_line(results.labels[name])}: {_one_line(why)}."
        for name, why in results.problems.items()
        if _is_part(results, name)
    ]
    return [*lines, *dict.fromkeys(results.notes)]


def _without_numbers(
    label: str, reason: str, metrics: Sequence[str], paper: tables.Published
) -> str:
    """A row that has none of its own: the reason, and what the paper has."""
    first, *others = [tables.paper_text(label, metric, paper) for metric in metrics]
    told = "; ".join(part for part in (_one_line(reason), first) if part)
    return tables.markdown_row([label, told, *others])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _published_alone(results: Results, name: str) -> dict[str, float]:
    """What the paper has of a row that has no numbers of its own, by metric."""
    own = {} if _is_part(results, name) else results.published
    return {metric: value for (row, metric), value in own.items() if row == name}


def _is_part(results: Results, name: str) -> bool:
    """Whether some of a row's seeds failed and others did not."""
    return name in set(results.summary["model"])


def seed_rows(results: Results) -> list[list[str]]:
    """Mean and standard deviation over training seeds: a head and one line per row, as texts.

    Empty where there is but one seed.
    """
    scores = results.scores
    if scores["training_seed"].nunique() < 2:
        return []
    means = scores.groupby(["model", "metric", "training_seed"])["score"].mean()
    metrics = ordered(sorted(scores["metric"].unique()), [*results.table.columns, *metric_names()])
    rows = [["over training seeds", *map(metric_label, metrics)]]
    for name, label in results.labels.items():
        if name not in set(scores["model"]):
            continue
        cells = []
        for metric in metrics:
            own = means.get((name, metric), pd.Series(dtype=float))
            text = score_text(metric, float(own.mean()))
            deviation = f" ± {score_text(metric, float(own.std()))}" if len(own) > 1 else ""
            cells.append(text + deviation)
        count = scores[scores["model"] == name]["training_seed"].nunique()
        rows.append([f"{_one_line(label)} ({count})", *cells])
    return rows


def spread(results: Results) -> str:
    """`seed_rows` as Markdown; empty where there is but one seed."""
    rows = seed_rows(results)
    if not rows:
        return ""
    lines = map(tables.markdown_row, [rows[0], ["---"] * len(rows[0]), *rows[1:]])
    return "\n".join([*lines, "", "Mean ± standard deviation (number of training seeds).", ""])


def direction(row: Any) -> tuple[str, str]:
    """Which way a gain went beyond doubt (▲, ▼, ≈), and whether that is better, worse or flat.

    Args:
        row: of `statistics.summarise`; an interval that is NaN claims nothing.
    """
    if math.isnan(row.gain_low):
        return "", "flat"
    if row.gain_low <= 0 <= row.gain_high:
        return "≈", "flat"
    rises = row.gain_low > 0
    better = "better" if rises != lower_is_better(row.metric) else "worse"
    return "▲" if rises else "▼", "flat" if neutral(row.metric) else better


def as_rows(results: Results) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the summary, for trackers: labels, means, gains, published values."""
    columns = ["mean", "low", "high", "gain", "gain_low", "gain_high"]
    rows = [
        [
            results.labels[row["model"]],
            plain_label(row["metric"]),
            *(row[column] for column in columns),
            results.published.get((row["model"], row["metric"]), math.nan),
        ]
        for row in results.summary.to_dict("records")
    ]
    return ["row", "metric", *columns, "paper"], rows


def table_csv(results: Results) -> str:
    """The summary with the labels and published values, full precision; failed rows at the end."""
    known: Mapping[Any, float] = results.published
    pairs = zip(results.summary["model"], results.summary["metric"], strict=True)
    frame = results.summary.assign(
        label=results.summary["model"].map(results.labels),
        published=[known.get(pair, math.nan) for pair in pairs],
        problem="",
    )
    failed = pd.DataFrame(
        [
            {"model": n, "label": results.labels[n], "problem": p, "metric": m, "published": v}
            for n, p in results.problems.items()
            for m, v in _published_alone(results, n).items() or [("", math.nan)]
        ]
    )
    return tables.plain_csv(pd.concat([frame, failed], ignore_index=True))

"""The page of a table: what moved, the numbers beside the published ones, the figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from raypref.ablate import figures
from raypref.ablate.claims import Tested, how_tested, summary_of, verdict_text
from raypref.ablate.results import Results, direction, seed_rows, under_table
from raypref.evaluate.labels import gain_text, heading, interval_text, score_text
from raypref.report.layout import fill


class Placed(NamedTuple):
    """Where the run of a row is."""

    label: str
    seed: int
    mlflow: str  # id of its run; "none" without MLflow
    folder: str


class Cell(NamedTuple):
    """A row's score by one metric, as texts; all empty where it has none."""

    mean: str = ""
    interval: str = ""
    gain: str = ""
    mark: str = ""  # which way the number went
    trend: str = ""  # "better", "worse", "flat" or ""
    paper: str = ""


class RowView(NamedTuple):
    """A row of the table."""

    label: str
    problem: str
    cells: Sequence[Cell]


class Statement(NamedTuple):
    """A claim, how it fares in one sentence, and by each metric with its outcome's class."""

    says: str
    summary: str
    verdicts: Sequence[tuple[str, str]]


OUTCOMES = {"confirmed": "better", "contradicted": "worse", "not decided": "flat"}


def render(
    results: Results,
    tested: Sequence[Tested],
    *,
    lead: str,
    banner: str,
    positions: Mapping[str, float],
    runs: Sequence[Placed],
) -> str:
    """The page as HTML text; it needs nothing from elsewhere.

    Args:
        results: all numbers of the table.
        tested: its claims with their verdicts.
        lead: one line on what was run.
        banner: why the published values cannot be compared with; empty: they can.
        positions: for curves, row's name to its value along the axis.
        runs: where each row's run is.
    """
    metrics = results.metrics()
    return fill(
        "ablation.html",
        filters={"capitalise": lambda text: text[:1].upper() + text[1:]},
        table=results.table,
        lead=lead,
        banner=banner,
        paper=results.paper,
        claims=[_statement(each, results) for each in tested],
        tested=how_tested(tested),
        metrics=[heading(metric) for metric in metrics],
        rows=_lines(results, metrics),
        under=" ".join(under_table(results)),
        drawings=[
            (title, Markup(svg))
            for title, svg in figures.panels(results, positions=positions)
            if results.table.shows == "runs"
        ],
        seeds=seed_rows(results),
        places=runs,
    )


def _statement(tested: Tested, results: Results) -> Statement:
    return Statement(
        tested.claim.says,
        summary_of(tested, results.table.columns),
        [(verdict_text(v, paper=results.paper), OUTCOMES[v.outcome]) for v in tested.verdicts],
    )


def _lines(results: Results, metrics: Sequence[str]) -> list[RowView]:
    cells = {(row.model, row.metric): row for row in results.summary.itertuples()}
    return [
        RowView(
            label,
            results.problems.get(name, ""),
            [
                _cell(cells.get((name, metric)), metric, results.published.get((name, metric)))
                for metric in metrics
            ],
        )
        for name, label in results.labels.items()
    ]


def _cell(row: Any, metric: str, published: float | None) -> Cell:
    paper = "" if published is None else score_text(metric, published)
    if row is None:
        return Cell(paper=paper)
    mean, interval = score_text(metric, row.mean), interval_text(metric, row.low, row.high)
    if math.isnan(row.gain):
        return Cell(mean, interval, paper=paper)
    mark, trend = direction(row)
    return Cell(mean, interval, gain_text(metric, row.gain), mark, trend, paper)

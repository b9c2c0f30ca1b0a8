"""A table's figure as SVG: bars of rows (Figure 5), curves over a setting (8), a scatter (2)."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raypref.ablate.results import Results
from raypref.evaluate.labels import gain_text, metric_label, plain_label
from raypref.report.charts import ACCENT, INK, LINE, SOFT, WARM, figure, inline
from raypref.report.figures import Point, draw_points, scatter

# The file is looked at on white paper, outside of a page that would give the colours.
ON_WHITE = {ACCENT: "#1a7f5a", WARM: "#8a8a8a", LINE: "#dddddd", INK: "#000000", SOFT: "#555555"}
COLUMNS = 3  # panels side by side
# No random ids and no date: the same numbers give the same file.
STABLE: Any = {"svg.hashsalt": "raypref", "svg.fonttype": "none", "font.size": 8}


def draw(results: Results, *, positions: Mapping[str, float]) -> str:
    """One panel per metric, in gains over the table's base: the paper's fit on the same axis.

    A scatter has two panels: this run's means, and the published ones on axes of their own.

    Args:
        results: of a table that has gains.
        positions: for curves, row's name to its value along the axis.

    Returns:
        An SVG file.
    """
    with mpl.rc_context(STABLE):
        if results.table.plot == "scatter":
            drawn = _scatters(results)
        else:
            drawn = _metrics(results, positions)
        target = io.BytesIO()
        drawn.savefig(target, format="svg", metadata={"Date": None})
    text = target.getvalue().decode()
    for colour, shown in ON_WHITE.items():
        text = text.replace(colour, shown)
    return text


def is_drawn(results: Results) -> bool:
    """Whether there is anything to draw."""
    if results.table.plot == "scatter":
        return any(points for _, points in _points(results))
    return bool(results.summary["gain"].notna().any())


def _metrics(results: Results, positions: Mapping[str, float]) -> Figure:
    metrics = results.metrics()
    height = math.ceil(len(metrics) / COLUMNS)
    drawn = Figure(figsize=(3.1 * COLUMNS, 2.5 * height), layout="constrained")
    for number, metric in enumerate(metrics):
        axes = drawn.add_subplot(height, COLUMNS, number + 1)
        _panel(axes, results, metric, positions)
        title = f"{plain_label(metric)}, gain over {results.table.base}"
        axes.set_title(title, parse_math=False)
        if number == 0:
            axes.legend(frameon=False)
    return drawn


def _scatters(results: Results) -> Figure:
    x, y = results.table.axes
    drawn = Figure(figsize=(7.6, 3.4), layout="constrained")
    for number, (title, points) in enumerate(_points(results)):
        axes = drawn.add_subplot(1, 2, number + 1)
        draw_points(axes, metric_label(x), metric_label(y), points)
        axes.set_title(title if points else f"{title}: no row has both", parse_math=False)
    return drawn


def _points(results: Results) -> list[tuple[str, list[Point]]]:
    """The points of a scatter's two panels, in the order of the rows."""
    x, y = results.table.axes
    means = {(row.model, row.metric): row.mean for row in results.summary.itertuples()}
    panels = []
    for title, values in (("this run", means), (results.paper, results.published)):
        both = [row for row in results.labels if {(row, x), (row, y)} <= set(values)]
        panels.append((title, [Point(results.labels[r], values[r, x], values[r, y]) for r in both]))
    return panels


def panels(results: Results, *, positions: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """The same panels one by one in the colours of a page: (metric for people, `<svg>`)."""
    if results.table.plot == "scatter":
        x, y = map(metric_label, results.table.axes)
        yield from ((title, scatter(x, y, own)) for title, own in _points(results) if own)
        return
    for metric in results.metrics():
        own = _gains(results, metric)
        if own.empty:
            continue
        drawn, axes = figure(3.8, 2.7)
        _panel(axes, results, metric, positions)
        axes.legend(frameon=False, fontsize=7.5, labelcolor=SOFT)
        axes.xaxis.label.set_color(SOFT)
        told = "; ".join(
            f"{results.labels[str(row.model)]} {gain_text(metric, row.gain)}"
            for row in own.itertuples()
        )
        yield plain_label(metric), inline(drawn, f"{plain_label(metric)}, gains: {told}")


def _panel(axes: Axes, results: Results, metric: str, positions: Mapping[str, float]) -> None:
    own, paper = _gains(results, metric), _published_gains(results, metric)
    if results.table.plot == "curves":
        _curves(axes, own, paper, positions, name=f"{results.paper} (same multiples)")
        axes.set_xlabel(results.table.x)
    else:
        _bars(axes, own, paper, results.labels, name=results.paper)
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _gains(results: Results, metric: str) -> pd.DataFrame:
    summary = results.summary
    return summary[(summary["metric"] == metric) & summary["gain"].notna()]


def _published_gains(results: Results, metric: str) -> dict[str, float]:
    base = results.published.get((results.table.base, metric))
    if base is None:
        return {}
    of_metric = {name: v for (name, m), v in results.published.items() if m == metric}
    return {name: v - base for name, v in of_metric.items() if name != results.table.base}


def _curves(
    axes: Axes,
    own: pd.DataFrame,
    paper: Mapping[str, float],
    positions: Mapping[str, float],
    *,
    name: str,
) -> None:
    own = own[own["model"].isin(list(positions))]
    own = own.assign(x=own["model"].map(positions).astype(float)).sort_values("x")
    axes.plot(own["x"], own["gain"], color=ACCENT, marker="o", markersize=4, label="this run")
    axes.fill_between(own["x"], own["gain_low"], own["gain_high"], color=ACCENT, alpha=0.2)
    points = sorted((positions[row], gain) for row, gain in paper.items() if row in positions)
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=WARM, marker="D", markersize=3, linestyle="dashed", label=name)
    axes.set_xticks(sorted(set(own["x"])), [f"{x:g}" for x in sorted(set(own["x"]))])


def _bars(
    axes: Axes,
    own: pd.DataFrame,
    paper: Mapping[str, float],
    labels: Mapping[str, str],
    *,
    name: str,
) -> None:
    names = [row for row in labels if row in set(own["model"])]
    rows = own.set_index("model").loc[names]
    spots = range(len(names))
    axes.bar(spots, rows["gain"], 0.6, color=ACCENT, alpha=0.8, label="this run")
    for spot, low, high in zip(spots, rows["gain_low"], rows["gain_high"], strict=True):
        axes.plot([spot, spot], [low, high], color=INK, linewidth=1)
    shown = [(spot, paper[row]) for spot, row in zip(spots, names, strict=True) if row in paper]
    if shown:
        x, y = zip(*shown, strict=True)
        axes.plot(x, y, "D", color=WARM, markersize=4, label=name)
    told = [labels[row].replace(" + ", "\n+ ") for row in names]
    how: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
    axes.set_xticks(list(spots), told, **how)

"""A table's figure as SVG: bars of rows (Figure 5) or curves over a setting (Figure 8)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from raypref.ablate.results import Results
from raypref.evaluate.labels import metric_names, ordered, plain_label

OURS, PAPER, GRID = "#1a7f5a", "#8a8a8a", "#dddddd"
COLUMNS = 3  # panels side by side
PUBLISHED = "paper (same multiples)"
# No random ids and no date: the same numbers give the same file.
STABLE: Any = {"svg.hashsalt": "raypref", "svg.fonttype": "none", "font.size": 8}


def draw(results: Results, *, places: Mapping[str, float]) -> str:
    """One panel a metric, in gains over the table's base: those of the paper fit on the same axis.

    Args:
        results: of a table whose `plot` is bars or curves.
        places: curves: row's name to its value along the axis.

    Returns:
        An SVG file.
    """
    summary = results.summary
    metrics = ordered(summary["metric"], [*results.table.columns, *metric_names()])
    height = math.ceil(len(metrics) / COLUMNS)
    with mpl.rc_context(STABLE):
        figure = Figure(figsize=(3.1 * COLUMNS, 2.5 * height), layout="constrained")
        for number, metric in enumerate(metrics):
            axes = figure.add_subplot(height, COLUMNS, number + 1)
            own = summary[(summary["metric"] == metric) & summary["gain"].notna()]
            paper = _published_gains(results, metric)
            if results.table.plot == "curves":
                _curves(axes, own, paper, places)
                axes.set_xlabel(results.table.x)
            else:
                _bars(axes, own, paper, results.labels)
            axes.axhline(0, color="black", linewidth=0.7)
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_axisbelow(True)
            title = f"{plain_label(metric)}, gain over {results.table.base}"
            axes.set_title(title, parse_math=False)
            if number == 0:
                axes.legend(frameon=False)
        target = io.BytesIO()
        figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue().decode()


def _published_gains(results: Results, metric: str) -> dict[str, float]:
    base = results.published.get((results.table.base, metric))
    if base is None:
        return {}
    of_metric = {name: v for (name, m), v in results.published.items() if m == metric}
    return {name: v - base for name, v in of_metric.items() if name != results.table.base}


def _curves(
    axes: Axes, own: pd.DataFrame, paper: Mapping[str, float], places: Mapping[str, float]
) -> None:
    own = own[own["model"].isin(list(places))]
    own = own.assign(x=own["model"].map(places).astype(float)).sort_values("x")
    axes.plot(own["x"], own["gain"], color=OURS, marker="o", markersize=4, label="this run")
    axes.fill_between(own["x"], own["gain_low"], own["gain_high"], color=OURS, alpha=0.2)
    points = sorted((places[name], gain) for name, gain in paper.items() if name in places)
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=PAPER, marker="D", markersize=3, linestyle="dashed", label=PUBLISHED)
    axes.set_xticks(sorted(set(own["x"])), [f"{x:g}" for x in sorted(set(own["x"]))])


def _bars(
    axes: Axes, own: pd.DataFrame, paper: Mapping[str, float], labels: Mapping[str, str]
) -> None:
    names = [name for name in labels if name in set(own["model"])]
    rows = own.set_index("model").loc[names]
    spots = range(len(names))
    axes.bar(spots, rows["gain"], 0.6, color=OURS, alpha=0.8, label="this run")
    for spot, low, high in zip(spots, rows["gain_low"], rows["gain_high"], strict=True):
        axes.plot([spot, spot], [low, high], color="black", linewidth=1)
    shown = [(spot, paper[name]) for spot, name in zip(spots, names, strict=True) if name in paper]
    if shown:
        x, y = zip(*shown, strict=True)
        axes.plot(x, y, "D", color=PAPER, markersize=4, label="paper")
    told = [labels[name].replace(" + ", "\n+ ") for name in names]
    how: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
    axes.set_xticks(list(spots), told, **how)

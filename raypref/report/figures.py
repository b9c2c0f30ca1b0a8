"""Figures that compare models: the paper's scatter (2) and bars (5), and a radar by category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from raypref.report.charts import ACCENT, INK, LINE, SOFT, WARM, figure, inline
from raypref.report.cursor import Cursor

# Of the models in the order of the tables: the base is grey, the last green. No red: it says worse.
COLOURS = (SOFT, WARM, INK)
DASHES = ("solid", "dashed", "dotted", "dashdot")


class Point(NamedTuple):
    """A model in a scatter plot."""

    label: str
    x: float
    y: float
    paper: bool = False  # a published one: an open diamond


class Bar(NamedTuple):
    """A model's mean with its interval (NaN where there is none)."""

    label: str
    value: float
    low: float
    high: float


class Line(NamedTuple):
    """A model in a radar: one value a category."""

    label: str
    values: Sequence[float]


def scatter(x_name: str, y_name: str, points: Sequence[Point]) -> str:
    """Models by two metrics, as the paper's Figure 2.

    Args:
        x_name: metric of the horizontal axis.
        y_name: metric of the vertical axis.
        points: one per model; ours are dots, published ones open diamonds.

    Returns:
        An `<svg>` element without width and height.
    """
    drawn, axes = figure(3.8, 2.6)
    draw_points(axes, x_name, y_name, points)
    said = "; ".join(f"{p.label} {p.x:.4g}, {p.y:.4g}" for p in points)
    return inline(drawn, f"{x_name} against {y_name}: {said}")


def draw_points(axes: Axes, x_name: str, y_name: str, points: Sequence[Point]) -> None:
    """Draw the points of a scatter plot with their names beside them."""
    ours = [point for point in points if not point.paper]
    for point in points:
        colour = WARM if point.paper else _colour(ours.index(point), len(ours))
        axes.plot(
            *([point.x], [point.y]),
            color=colour,
            marker="D" if point.paper else "o",
            fillstyle="none" if point.paper else "full",
            markersize=7,
            linestyle="none",
        )
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(6, 5),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            parse_math=False,
        )
    axes.set_xlabel(x_name, color=SOFT, fontsize=8.5)
    axes.set_ylabel(y_name, color=SOFT, fontsize=8.5)
    axes.grid(color=LINE, linewidth=0.7)
    axes.margins(x=0.25, y=0.2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))


def bars(name: str, rows: Sequence[Bar], *, digits: int) -> str:
    """Means of the models by one metric, as a panel of the paper's Figure 5.

    The axis begins near the lowest value, as in the paper: heights are not in proportion.

    Args:
        name: of the metric, for the accessible label.
        rows: one per model, from left to right; at least one.
        digits: decimals of the numbers over the bars.
    """
    drawn, axes = figure(3.4, 2.2)
    lows = [row.value if math.isnan(row.low) else row.low for row in rows]
    highs = [row.value if math.isnan(row.high) else row.high for row in rows]
    span = max(highs) - min(lows) or abs(max(highs)) or 1.0
    floor = min(lows) - 0.35 * span
    for place, row in enumerate(rows):
        colour = _colour(place, len(rows))
        axes.bar([place], [row.value - floor], 0.62, bottom=floor, color=colour, alpha=0.85)
        if not math.isnan(row.low):
            axes.plot([place, place], [row.low, row.high], color=INK, linewidth=1.0)
        axes.annotate(
            f"{row.value:z.{digits}f}",
            (place, highs[place]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    labels = [row.label.replace(" + ", "\n+ ") for row in rows]
    axes.set_xticks(range(len(rows)), labels, parse_math=False)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_ylim(floor, max(highs) + 0.18 * span)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    said = "; ".join(f"{row.label} {row.value:z.{digits}f}" for row in rows)
    return inline(drawn, f"{name}: {said}", Cursor(range(len(rows)), [*map(_bar, rows)]))


def _bar(row: Bar) -> str:
    text = f"{row.label}: {row.value:.4g}"
    return text if math.isnan(row.low) else f"{text} [{row.low:.4g}, {row.high:.4g}]"


def radar(name: str, categories: Sequence[str], lines: Sequence[Line]) -> str:
    """Means of the models by one metric in every category.

    Each spoke runs from the lowest to the highest mean of its category, so that categories of
    different difficulty can be seen together: it shows who leads where, not by how much.

    Args:
        name: of the metric, for the accessible label.
        categories: at least three, clockwise from the top.
        lines: one per model; values in the order of the categories, NaN where there is none.
    """
    drawn, axes = figure(4.2, 3.4)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(categories)) / len(categories)
    around = np.append(angles, angles[0])
    for radius in (0.25, 0.5, 0.75, 1.0):
        axes.plot(radius * np.cos(around), radius * np.sin(around), color=LINE, linewidth=0.7)
    values = np.array([line.values for line in lines], np.float64)
    low, high = np.nanmin(values, 0), np.nanmax(values, 0)
    scaled = 0.25 + 0.75 * (values - low) / np.where(high > low, high - low, 1.0)
    for place, (line, radii) in enumerate(zip(lines, scaled, strict=True)):
        closed = np.append(radii, radii[0])
        axes.plot(
            *(closed * np.cos(around), closed * np.sin(around)),
            color=_colour(place, len(lines)),
            linestyle=DASHES[place % len(DASHES)] if 0 < place < len(lines) - 1 else "solid",
            linewidth=1.8,
            label=line.label,
        )
    for angle, category in zip(angles, categories, strict=True):
        side = "center" if abs(np.cos(angle)) < 0.2 else "left" if np.cos(angle) > 0 else "right"
        at = (1.08 * np.cos(angle), 1.08 * np.sin(angle))
        axes.text(*at, category, ha=side, va="center", fontsize=8, color=SOFT, parse_math=False)
    axes.set_aspect("equal")
    axes.set_xlim(-1.9, 1.9)
    axes.set_xticks([])
    axes.set_yticks([])
    legend = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.02), ncol=2, frameon=False, fontsize=8
    )
    for text in legend.get_texts():
        text.set_color(SOFT)
        text.set_parse_math(False)
    return inline(drawn, f"{name} by category: {', '.join(categories)}")


def _colour(place: int, count: int) -> str:
    """Of the model at a place; the last of several is the one the run is about."""
    return ACCENT if count > 1 and place == count - 1 else COLOURS[place % len(COLOURS)]

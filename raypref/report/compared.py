"""From the tables of an evaluation to the figures that compare its models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from raypref.evaluate.labels import digits, metric_label, model_label
from raypref.evaluate.tables import Published
from raypref.report import figures

# The axes of the paper's Figure 2; stylization (OneIG-Bench) is drawn when someone scores it.
FIGURE_2 = (("realism", "texture_detail"), ("human_preference", "stylization"))
FEWEST_SPOKES, MOST_SPOKES = 3, 14


class Compared(NamedTuple):
    """A figure with its words."""

    title: str
    note: str
    drawing: Markup


def compared(
    table: pd.DataFrame,
    categories: pd.DataFrame | None,
    published: Published,
    labels: Mapping[str, str],
) -> Iterator[Compared]:
    """The figures that these tables are enough for.

    Args:
        table: of `statistics.summarise`.
        categories: of `statistics.by_category`, if there is one.
        published: the paper's numbers; drawn in the scatter plots.
        labels: names of the models for people, as `Run.labels`.
    """
    table = table[table["mean"].notna()]  # a distance of one prompt is none
    if table.empty:
        return
    means = table.pivot_table(index="model", columns="metric", values="mean", sort=False)
    for x, y in FIGURE_2:
        if {x, y} <= set(means.columns):
            yield _scatter(means[[x, y]].dropna(), x, y, published, labels)
    if len(means) > 1:
        for metric, part in table.groupby("metric", sort=False):
            rows = [
                figures.Bar(model_label(row["model"], labels), row["mean"], row["low"], row["high"])
                for row in part.to_dict("records")
            ]
            label = metric_label(str(metric))
            svg = figures.bars(label, rows, digits=digits(str(metric)))
            what = "mean and 95% interval" if part["low"].notna().any() else "mean"
            yield Compared(label, f"{what}; the axis is cut", Markup(svg))
    if categories is not None and not categories.empty and len(means) > 1:
        yield from _radars(categories, str(table["metric"].iloc[0]), labels)


def _scatter(
    means: pd.DataFrame, x: str, y: str, published: Published, labels: Mapping[str, str]
) -> Compared:
    points = [
        figures.Point(model_label(str(model), labels), float(own[x]), float(own[y]))
        for model, own in means.iterrows()
    ]
    both = [m for m, metric in published if metric == x and (m, y) in published]
    for model in both:
        label = f"{model_label(model, labels)}, paper"
        points.append(figures.Point(label, published[model, x], published[model, y], paper=True))
    names = (metric_label(x), metric_label(y))
    svg = figures.scatter(*names, points)
    return Compared(f"{names[1]} against {names[0]}", "as the paper's Figure 2", Markup(svg))


def _radars(categories: pd.DataFrame, metric: str, labels: Mapping[str, str]) -> Iterator[Compared]:
    own = categories[categories["metric"] == metric]
    for grouping, part in own.groupby("grouping", sort=False):
        wide = part.pivot_table(index="model", columns="group", values="mean", sort=False)
        if not FEWEST_SPOKES <= len(wide.columns) <= MOST_SPOKES:
            continue
        lines = [
            figures.Line(model_label(str(model), labels), [float(v) for v in values])
            for model, values in wide.iterrows()
            if not any(map(math.isnan, values))
        ]
        label = metric_label(metric)
        svg = figures.radar(label, [str(group) for group in wide.columns], lines)
        note = "every spoke runs from the lowest to the highest of its category"
        yield Compared(f"{label} by {grouping}", note, Markup(svg))

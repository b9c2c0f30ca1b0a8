"""Charts of the report as inline SVG that takes its colours and font from the page.

matplotlib draws in marker colours; `_inline` turns those into CSS variables, so one drawing works
in the light and in the dark theme, and drops all that a page must not carry twice (ids, fonts).
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Drawn in these colours, shown in the page's variables of the same names.
INK, SOFT, LINE, ACCENT, WARM = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", ACCENT: "accent", WARM: "warm"}

POINTS = 600  # points a curve is thinned to; more cannot be told apart at this size


class Gain(NamedTuple):
    """One row of a forest plot: a model's gain over the base."""

    label: str
    gain: float
    low: float  # NaN where there is no interval
    high: float
    paper: float | None  # the published gain


def curve(name: str, steps: np.ndarray, values: np.ndarray, *, smooth: bool = True) -> str:
    """A training curve: every value as a thin line, the moving average as a thick one.

    The vertical axis spans the middle 98% of the values (all of them below 100 values), so that
    one spike does not flatten the rest.

    Args:
        name: of the metric, for the accessible label.
        steps: optimizer steps, ascending, [n].
        values: the metric at these steps, [n]; NaN where it was not measured.
        smooth: False draws the values themselves thick, for what is set and not measured.

    Returns:
        An `<svg>` element without width and height.
    """
    known = np.isfinite(values)
    steps, values = steps[known], values[known].astype(np.float64)
    assert len(values) > 0, f"{name}: nothing to draw"
    trend = smoothed(values) if smooth else values
    tail = 1.0 if len(values) >= 100 else 0.0
    low, high = np.percentile(values, [tail, 100 - tail])
    low, high = min(low, trend.min()), max(high, trend.max())
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    thin = slice(None, None, math.ceil(len(values) / POINTS))

    figure, axes = _figure(3.4, 1.75)
    axes.plot(steps[thin], values[thin], color=SOFT, linewidth=0.7, alpha=0.65)
    # One value is a line without length: it shows as a point.
    marker = "o" if len(values) == 1 else ""
    axes.plot(steps[thin], trend[thin], color=ACCENT, linewidth=2.0, marker=marker)
    axes.set_ylim(low - margin, high + margin)
    _ticks(axes, low, high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.margins(x=0.01)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    first, last = float(trend[0]), float(trend[-1])
    label = (
        f"{name}, {len(values)} points up to step {int(steps[-1])}, from {first:.4g} to {last:.4g}"
    )
    return _inline(figure, label)


def forest(name: str, rows: Sequence[Gain], *, digits: int) -> str:
    """Gains over the base with their intervals; a diamond marks the published gain.

    Args:
        name: of the metric, for the accessible label.
        rows: one a model, drawn from top to bottom; at least one.
        digits: decimals of the numbers in the accessible label.
    """
    figure, axes = _figure(3.4, 0.55 + 0.33 * len(rows))
    axes.axvline(0.0, color=SOFT, linewidth=1.0)
    for place, row in enumerate(rows):
        clear = row.low > 0 or row.high < 0
        color = ACCENT if clear else SOFT
        if not math.isnan(row.low):
            axes.plot([row.low, row.high], [place, place], color=color, linewidth=3.0, alpha=0.45)
        axes.plot([row.gain], [place], color=color, marker="o", markersize=6)
        if row.paper is not None:
            axes.plot(
                [row.paper], [place], color=WARM, marker="D", markersize=5.5, fillstyle="none"
            )
    # A dollar sign in a model's name is no formula.
    axes.set_yticks(range(len(rows)), [row.label for row in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.margins(x=0.08)
    label = f"{name}, gain over the base: " + "; ".join(
        f"{row.label} {row.gain:+z.{digits}f}" for row in rows
    )
    return _inline(figure, label)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a fifteenth of the values: it does not lag behind them, [n]."""
    window = max(1, len(values) // 15)
    series = pd.Series(values)
    return series.rolling(window, center=True, min_periods=1).mean().to_numpy()


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # The object interface: pyplot would keep every figure alive and choose a window system.
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    # The font matplotlib measures with is wider than most system fonts: labels never overlap.
    axes.tick_params(length=0, labelsize=8.5, labelcolor=SOFT)
    axes.set_axisbelow(True)
    return figure, axes


def _ticks(axes: Axes, low: float, high: float) -> None:
    """About four values at the vertical axis, each written out: no offset, no shared power."""
    ticks = MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(low, high)
    step = float(ticks[1] - ticks[0])
    small = max(abs(low), abs(high)) < 1e-3
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    bottom, top = axes.get_ylim()
    shown = [tick for tick in ticks if bottom <= tick <= top]
    axes.set_yticks(shown, [_number(tick, decimals, small=small) for tick in shown])


def _number(value: float, decimals: int, *, small: bool) -> str:
    if value == 0:
        return "0"
    return f"{value:.3g}".replace("e-0", "e-") if small else f"{value:z,.{decimals}f}"


def _inline(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    # The salt makes clip-path ids the same in every run and different from chart to chart.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The style sheet in it would apply to the whole page, the fonts would replace the page's.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'(?<=<g) id="[^"]*"|font-family: [^;"]*; ?', "", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    opening = f'<svg {box.group()} role="img" aria-label="{html.escape(label)}">'
    text = re.sub(r"<svg [^>]*>", lambda _: opening, text, count=1, flags=re.S)
    return re.sub(r"\s*\n\s*", " ", text).strip()

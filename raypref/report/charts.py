"""Charts of the report as inline SVG that takes its colours and font from the page.

matplotlib draws in marker colours; `inline` turns those into CSS variables, so one drawing works
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

from raypref.report.cursor import Cursor, attribute

# Drawn in these colours, shown in the page's variables of the same names.
INK, SOFT, LINE, ACCENT, WARM = "#010101", "#020202", "#030303", "#040404", "#050505"
BAD, FILL = "#060606", "#070707"
VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    LINE: "line",
    ACCENT: "accent",
    WARM: "warm",
    BAD: "bad",
    FILL: "fill",
}

BINS = 48  # of a histogram at most
POINTS = 600  # points per curve after thinning; more cannot be distinguished at this size


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
    drawn, axes = figure(3.4, 1.75)
    trend = smoothed(values) if smooth else values
    _line(axes, steps, values, trend, color=ACCENT, thin_color=SOFT)
    _over_steps(axes, *_span(values, trend))
    first, last = float(trend[0]), float(trend[-1])
    label = (
        f"{name}, {len(values)} points up to step {int(steps[-1])}, from {first:.4g} to {last:.4g}"
    )
    thin = _thinned(values)
    texts = [f"{value:.4g}" for value in values[thin]]
    return inline(drawn, label, Cursor(steps[thin].tolist(), texts, lead="step"))


def against_reference(
    steps: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, *, other: str = "rejected images"
) -> str:
    """Both errors of a training, less those of the reference: zero is where it began.

    Args:
        steps: optimizer steps, ascending, [n].
        chosen: error on the chosen images, less the reference's, finite, [n].
        rejected: the same on the rejected ones.
        other: what the rejected ones are.
    """
    drawn, axes = figure(3.4, 1.75)
    spans = []
    for values, color in ((rejected, WARM), (chosen, ACCENT)):
        trend = smoothed(values)
        _line(axes, steps, values, trend, color=color, thin_color=color)
        spans.append(_span(values, trend))
    axes.axhline(0, color=SOFT, linewidth=1.0)
    _over_steps(axes, min(0.0, *(low for low, _ in spans)), max(0.0, *(high for _, high in spans)))
    label = (
        f"errors relative to the reference, up to step {int(steps[-1])}: chosen images "
        f"{smoothed(chosen)[-1]:.4g}, {other} {smoothed(rejected)[-1]:.4g}"
    )
    thin = _thinned(steps)
    both = zip(chosen[thin], rejected[thin], strict=True)
    short = other.removesuffix(" images")
    texts = [f"chosen {one:+.3g}, {short} {two:+.3g}" for one, two in both]
    return inline(drawn, label, Cursor(steps[thin].tolist(), texts, lead="step"))


def forest(name: str, rows: Sequence[Gain], *, digits: int, less: bool | None = False) -> str:
    """Gains over the base with their intervals; a diamond marks the published gain.

    Args:
        name: of the metric, for the accessible label.
        rows: one per model, drawn from top to bottom; at least one.
        digits: decimals of the numbers in the accessible label.
        less: less is better; None: neither.
    """
    drawn, axes = figure(3.4, 0.55 + 0.33 * len(rows))
    axes.axvline(0.0, color=SOFT, linewidth=1.0)
    for place, row in enumerate(rows):
        good, bad = (row.high < 0, row.low > 0) if less else (row.low > 0, row.high < 0)
        color = ACCENT if good else BAD if bad else SOFT
        if less is None:
            color = SOFT if row.low <= 0 <= row.high else INK
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
    texts = [f"{row.label}: {_gain(row, digits)}" for row in rows]
    return inline(drawn, label, Cursor(range(len(rows)), texts, vertical=True))


def _gain(row: Gain, digits: int) -> str:
    text = f"{row.gain:+z.{digits}f}"
    if not math.isnan(row.low):
        text += f" [{row.low:z.{digits}f}, {row.high:z.{digits}f}]"
    return text if row.paper is None else f"{text}, paper {row.paper:+z.{digits}f}"


def histogram(name: str, values: np.ndarray, *, threshold: float | None) -> str:
    """How many values fall where; those the threshold keeps in full colour.

    The horizontal axis spans the middle 99% of the values, with the threshold always in it.

    Args:
        name: of the measurement, for the accessible label.
        values: finite, at least one, [n].
        threshold: what is above it is kept; None keeps all.
    """
    cut = -math.inf if threshold is None else threshold
    low, high = np.percentile(values, [0.5, 99.5])
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    bins = min(BINS, 8 + len(values) // 8)
    width = (high - low) / bins
    # The threshold lies between two bars, so that no bar is of both sides.
    start = low if threshold is None else threshold - math.ceil((threshold - low) / width) * width
    edges = start + width * np.arange(bins + 2)
    inside = values.clip(edges[0], edges[-1])  # the tails are counted in the outermost bins

    drawn, axes = figure(3.8, 1.8)
    for part, color in ((inside[values > cut], FILL), (inside[values <= cut], SOFT)):
        counts, _ = np.histogram(part, edges)
        axes.stairs(counts, edges, fill=True, color=color, linewidth=0, alpha=0.85)
    if threshold is not None:
        axes.axvline(threshold, color=WARM, linewidth=1.6)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.margins(x=0)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    kept = int((values > cut).sum())
    label = f"{name}: {kept} of {len(values)} values are above "
    label += "no threshold" if threshold is None else f"{threshold:.4g}"
    counts, _ = np.histogram(inside, edges)
    bars = zip(edges[:-1], edges[1:], counts, strict=True)
    texts = [f"{left:.4g} to {right:.4g}: {count:,}" for left, right, count in bars]
    middles = (edges[:-1] + edges[1:]) / 2
    return inline(drawn, label, Cursor(middles.tolist(), texts))


def versus_base(name: str, gains: np.ndarray, *, digits: int) -> str:
    """Gains of single prompts, the best first: how many win, and by how much.

    Args:
        name: of the metric, for the accessible label.
        gains: descending, [prompts].
        digits: decimals of the numbers in the accessible label.
    """
    drawn, axes = figure(3.4, 1.75)
    edges = np.arange(len(gains) + 1)
    for part, color in ((gains.clip(min=0), FILL), (gains.clip(max=0), BAD)):
        axes.stairs(part, edges, fill=True, color=color, linewidth=0)
    axes.axhline(0, color=SOFT, linewidth=0.8)
    axes.set_xticks([])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.margins(x=0.01)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    label = f"{name}, {len(gains)} prompts from {gains[0]:+z.{digits}f} to {gains[-1]:+z.{digits}f}"
    thin = _thinned(gains)
    at = np.arange(len(gains))[thin]
    texts = [
        f"prompt {i + 1} of {len(gains)}: {gain:+z.{digits}f}"
        for i, gain in zip(at, gains[thin], strict=True)
    ]
    return inline(drawn, label, Cursor((at + 0.5).tolist(), texts))


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a fifteenth of the values: it does not lag behind them, [n]."""
    window = max(1, len(values) // 15)
    series = pd.Series(values)
    return series.rolling(window, center=True, min_periods=1).mean().to_numpy()


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of a size in inches, in the style of the page."""
    # The object interface: pyplot would keep every figure alive and choose a window system.
    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    axes.spines[:].set_visible(False)
    # The font matplotlib measures with is wider than most system fonts: labels never overlap.
    axes.tick_params(length=0, labelsize=8.5, labelcolor=SOFT)
    axes.set_axisbelow(True)
    return drawn, axes


def _line(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    trend: np.ndarray,
    *,
    color: str,
    thin_color: str,
) -> None:
    """Every value as a thin line, the trend as a thick one."""
    thin = _thinned(values)
    axes.plot(steps[thin], values[thin], color=thin_color, linewidth=0.7, alpha=0.5)
    # One value is a line without length: it shows as a point.
    marker = "o" if len(values) == 1 else ""
    axes.plot(steps[thin], trend[thin], color=color, linewidth=2.0, marker=marker)


def _thinned(values: np.ndarray) -> slice:
    """At most `POINTS` of the values, evenly spread."""
    return slice(None, None, max(1, math.ceil(len(values) / POINTS)))


def _span(values: np.ndarray, trend: np.ndarray) -> tuple[float, float]:
    """What the vertical axis shows: one spike must not flatten the rest."""
    tail = 1.0 if len(values) >= 100 else 0.0
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(min(low, trend.min())), float(max(high, trend.max()))


def _over_steps(axes: Axes, low: float, high: float) -> None:
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - margin, high + margin)
    _ticks(axes, low, high)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.margins(x=0.01)
    axes.grid(axis="y", color=LINE, linewidth=0.7)


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


def inline(drawn: Figure, label: str, cursor: Cursor | None = None) -> str:
    """The drawing as an `<svg>` element in the page's colours, with its accessible label.

    Args:
        drawn: of one pair of axes.
        label: for those who do not see it.
        cursor: the values that are shown under the pointer.
    """
    buffer = io.StringIO()
    # The salt makes clip-path ids the same in every run and different from chart to chart.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The style sheet in it would apply to the whole page, the fonts would replace the page's.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'(?<=<g) id="[^"]*"|font-family: [^;"]*; ?', "", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    values = attribute(drawn.axes[0], cursor) if cursor else ""
    opening = f'<svg {box.group()} role="img" aria-label="{html.escape(label)}"{values}>'
    text = re.sub(r"<svg [^>]*>", lambda _: opening, text, count=1, flags=re.S)
    return re.sub(r"\s*\n\s*", " ", text).strip()

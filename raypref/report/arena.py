"""The page of an arena: the generators' capabilities, and what they explain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from raypref.pairs.arena import ArenaConfig
from raypref.pairs.choices import Correlation, Findings, Standing
from raypref.report.charts import ACCENT, LINE, SOFT, figure, inline
from raypref.report.cursor import Cursor
from raypref.report.layout import fill

SAID = {"vote_share": "share of votes for the chosen image", "confidence": "confidence"}
MOST_DRAWN = 60  # generators in the figure; the table has all


def render(found: Findings, counts: Mapping[str, int], config: ArenaConfig) -> str:
    """The page as HTML text.

    Args:
        found: of `pairs.choices.arena_findings`.
        counts: what became of the labels, by word; `labels` is their number.
        config: what the arena was fitted with.
    """
    return fill(
        "arena.html",
        filters={"number": _number, "percent": _percent, "interval": _interval, "said": SAID.get},
        scripts=("cursor.js",),
        found=found,
        counts=dict(counts),
        config=config,
        left=len(found.standings) - MOST_DRAWN,
        drawing=Markup(capabilities(found.standings[:MOST_DRAWN])),
    )


def capabilities(standings: Sequence[Standing]) -> str:
    """Means with two standard deviations to either side, the most capable on top.

    Args:
        standings: at least one.
    """
    drawn, axes = figure(6.8, 0.6 + 0.27 * len(standings))
    for place, row in enumerate(standings):
        ends = [row.mean - 2 * row.std, row.mean + 2 * row.std]
        axes.plot(ends, [place, place], color=ACCENT, linewidth=3.0, alpha=0.45)
        axes.plot([row.mean], [place], color=ACCENT, marker="o", markersize=6)
    middle = sum(row.mean for row in standings) / len(standings)
    axes.axvline(middle, color=SOFT, linewidth=1.0)
    # A dollar sign in a generator's name is no formula.
    axes.set_yticks(
        range(len(standings)), [_short(row.generator) for row in standings], parse_math=False
    )
    axes.set_ylim(len(standings) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.margins(x=0.04)
    texts = [f"{row.generator}: {row.mean:.2f} ±{2 * row.std:.2f}" for row in standings]
    label = f"capabilities of generators: {'; '.join(texts)}"
    return inline(drawn, label, Cursor(range(len(standings)), texts, vertical=True))


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:31]}…"


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:z,.{digits}f}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:z.1f}%"


def _interval(value: Correlation) -> str:
    if math.isnan(value.value):
        return "–"
    return f"{value.value:z.3f} [{value.low:z.3f}, {value.high:z.3f}]"

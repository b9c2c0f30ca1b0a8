"""The page about people's votes: who wins, how strong each model is, how the raters did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from raypref.report import charts
from raypref.report.layout import fill


def render(results: Any, *, lead: Sequence[str]) -> str:
    """The page as HTML text.

    Args:
        results: `raypref.study.results.Results`.
        lead: sentences that say the most important.
    """
    tables = {
        name: getattr(results, name).to_dict("records")
        for name in ("outcomes", "agreement", "strengths", "raters")
    }
    gains = [
        charts.Gain(
            f"{row['model']} against {row['other']}"
            + (f", {row['category']}" if row["category"] != "all" else ""),
            row["rate"] - 50,
            row["rate_low"] - 50,
            row["rate_high"] - 50,
            None,
        )
        for row in tables["outcomes"]
    ]
    return fill(
        "voted.html",
        filters={"number": _number},
        scripts=("cursor.js",),
        lead=lead,
        plot=Markup(charts.forest("wins and half the ties, above 50%", gains, digits=1)),
        **tables,
    )


def _number(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:z.{digits}f}"

"""The page about rewards themselves: accuracy, agreement and biases, as tables and plots."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd
from markupsafe import Markup

from raypref.evaluate.labels import plain_label
from raypref.report import charts
from raypref.report.layout import fill


def render(*, accuracy: pd.DataFrame, agreement: pd.DataFrame, bias: pd.DataFrame) -> str:
    """The page as HTML text.

    Args:
        accuracy: of `judge.accuracy`.
        agreement: of `judge.agreement`.
        bias: of `judge.bias`.
    """
    return fill(
        "judged.html",
        filters={"label": _label, "number": _number},
        scripts=("cursor.js",),
        accuracy=accuracy.to_dict("records"),
        agreement=agreement.to_dict("records"),
        bias=bias.to_dict("records"),
        plots=list(_plots(bias)),
    )


def _plots(bias: pd.DataFrame) -> Iterator[tuple[str, Markup]]:
    """One a property: every reward's bias with its interval."""
    for prop, part in bias.groupby("property", sort=False):
        rows = [
            charts.Gain(_label(row["reward"]), row["bias"], row["low"], row["high"], None)
            for row in part.to_dict("records")
        ]
        yield str(prop), Markup(charts.forest(f"bias towards {prop}", rows, digits=2))


def _label(reward: str) -> str:
    return plain_label(reward)


def _number(value: float, digits: int = 3) -> str:
    return "–" if math.isnan(value) else f"{value:z.{digits}f}"

"""What a run says last in the terminal: its table and the numbers that matter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raypref.evaluate.labels import (
    gain_text,
    interval_text,
    lower_is_better,
    metric_label,
    model_label,
    neutral,
    score_text,
)
from raypref.evaluate.tables import footnote

if TYPE_CHECKING:
    import pandas as pd


def closing(summary: pd.DataFrame, *, final: str, labels: Mapping[str, str]) -> str:
    """The table as aligned text, and what the final model gained over the base.

    Args:
        summary: of `statistics.summarise`.
        final: the model that the run is about, by its name in the table.
        labels: names of the models for people, as `Run.labels`.
    """
    models = list(dict.fromkeys(summary["model"]))
    metrics = list(dict.fromkeys(summary["metric"]))
    cells = {(row.model, row.metric): row for row in summary.itertuples()}
    grid = [["", *map(metric_label, metrics)]]
    for model in models:
        grid.append([model_label(model, labels), *(_cell(cells.get((model, m))) for m in metrics)])
    lines = [*_aligned(grid), "", footnote(summary).replace(" (gain over the base)", "")]
    gains = [
        row
        for metric in metrics
        if (row := cells.get((final, metric))) is not None and not math.isnan(row.gain)
    ]
    if gains:
        lines += ["", f"{model_label(final, labels)} against {model_label(models[0], labels)}:"]
        lines += [f"  {line}" for line in _aligned([_headline(row) for row in gains])]
    return "\n".join(lines)


def _cell(row: Any) -> str:
    if row is None:
        return "not run"
    return f"{score_text(row.metric, row.mean)} {interval_text(row.metric, row.low, row.high)}"


def _headline(row: Any) -> list[str]:
    interval = interval_text(row.metric, row.gain_low, row.gain_high)
    gain = f"{gain_text(row.metric, row.gain)} {interval}"
    return [metric_label(row.metric), gain, verdict(row)]


def verdict(row: Any) -> str:
    """Whether a row of `statistics.summarise` is better than the base, in words."""
    if math.isnan(row.gain_low):
        return "no interval"
    if row.gain_low <= 0 <= row.gain_high:
        return "no clear difference"
    up = row.gain > 0
    if neutral(row.metric):
        return "higher" if up else "lower"
    return "better" if up != lower_is_better(row.metric) else "worse"


def _aligned(grid: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in grid
    ]

"""The first words of the page: what came out, in one sentence, and how far the run is."""

from __future__ import annotations

import math
from typing import Any

from raypref.core.progress import duration
from raypref.evaluate import labels
from raypref.report.views import ReportData


def sentence(data: ReportData) -> str:
    """The result in plain words."""
    if row := _first_gain(data):
        return _gained(row, data)
    pairs = f"{_several(pair_count(data), data.terms.made_whole)} "
    are = "is" if pair_count(data) == 1 else "are"
    if not data.pairs:
        return f"There are no {data.terms.made}s yet."
    if data.table is not None and not data.table.empty:
        return f"{pairs}{are} ready and the models are evaluated; the table has no gain."
    if data.training:
        names = " and ".join(view.name for view in data.training)
        return f"{pairs}{are} ready and {names} trained; nothing is evaluated yet."
    return f"{pairs}{are} ready; nothing is trained yet."


def about(data: ReportData) -> str:
    """Pairs, inputs, time and seed, in one line."""
    parts = []
    if data.pairs and data.funnel:
        found = _several(data.funnel[0].remaining, data.terms.input)
        parts.append(f"{_several(pair_count(data), data.terms.made)} from {found}")
    if spent := seconds(data):
        parts.append(duration(spent))
    return " · ".join([*parts, data.subtitle])


def progress(data: ReportData) -> str:
    """What is done and what is to come; empty where nothing is to come."""
    if not data.to_come:
        return ""
    done = f"Done: {', '.join(data.done)}. " if data.done else ""
    return f"{done}Still to come: {', '.join(data.to_come)}."


def seconds(data: ReportData) -> float:
    """The run's time: as recorded from its start, or the sum of its steps."""
    return data.seconds or sum(cost.seconds for cost in data.costs)


def pair_count(data: ReportData) -> int:
    """Pairs that were selected."""
    return data.funnel[-1].remaining if data.funnel else len(data.pairs)


def final_model(data: ReportData) -> str:
    """The model that the run is about; the table must have rows."""
    assert data.table is not None
    return data.final or str(data.table["model"].iloc[-1])


def _first_gain(data: ReportData) -> Any:
    """The final model's first row of the table with a gain, or None."""
    if data.table is None or data.table.empty:
        return None
    own = data.table[data.table["model"] == final_model(data)]
    return next((row for row in own.itertuples() if not math.isnan(row.gain)), None)


def _gained(row: Any, data: ReportData) -> str:
    metric, name = labels.plain_label(row.metric), labels.model_label(row.model, data.labels)
    before = labels.score_text(row.metric, row.mean - row.gain)
    mean, gain = (
        labels.score_text(row.metric, row.mean),
        labels.gain_text(row.metric, row.gain),
    )
    interval = labels.interval_text(row.metric, row.gain_low, row.gain_high)
    how = f"{gain}, 95% interval {interval}" if interval else f"{gain}, no interval"
    if row.gain_low > 0 or row.gain_high < 0:
        text = f"{metric} {'rises' if row.gain > 0 else 'falls'} from {before} (base) to {mean}"
        better = (row.gain > 0) != labels.lower_is_better(row.metric)
        text += f" after {name} ({how}){'' if better else ', which is worse'}"
    else:
        text = f"No clear difference: {metric} is {before} for the base and {mean} after {name}"
        text += f" ({how})"
    for view in data.prompt_gains:
        if view.metric == row.metric:
            prompts = _several(len(view.gains), "prompt")
            return f"{text}; better on {view.wins:,} of {prompts}, worse on {view.losses:,}."
    return f"{text}."


def _several(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"

"""The first words of the page: what came out, in one sentence, and how far the run is."""

from __future__ import annotations

import math
from typing import Any

from raypref.core.progress import duration
from raypref.evaluate import labels
from raypref.report.meanings import gain_words, meaning_of
from raypref.report.views import ReportData


def sentence(data: ReportData) -> str:
    """The result in plain words."""
    if row := _first_gain(data):
        return _gained(row, data)
    pairs = f"{_several(pair_count(data), data.terms.made_whole)} "
    are = "is" if pair_count(data) == 1 else "are"
    if not pair_count(data):
        return f"There are no {data.terms.made}s yet."
    if data.table is not None and not data.table.empty:
        return f"{pairs}{are} ready and the models are evaluated; the table has no gain."
    if data.training:
        names = " and ".join(view.name for view in data.training)
        return f"{pairs}{are} ready and {names} trained; nothing is evaluated yet."
    return f"{pairs}{are} ready; nothing is trained yet."


def intro(data: ReportData) -> str:
    """What the page is of, and what its first metric says, for a reader who knows neither."""
    learned = data.terms.learned
    model = "an inpainting model" if data.inpaints else "a text-to-image model"
    if not data.training and not _first_gain(data):
        return f"{data.terms.made.capitalize()}s that teach {model} to {learned}."
    said = [f"{model.capitalize()}, trained to {learned}."]
    if row := _first_gain(data):
        said.append(meaning_of(row.metric))
    return " ".join(filter(None, said))


def about(data: ReportData) -> str:
    """Pairs, inputs, time and seed, in one line."""
    parts = []
    if data.funnel:
        found = _several(data.funnel[0].remaining, data.terms.input)
        parts.append(f"{_several(pair_count(data), data.terms.made)} from {found}")
    if spent := seconds(data):
        parts.append(duration(spent))
    return " · ".join([*parts, data.subtitle])


def progress(data: ReportData) -> str:
    """What is done, what is to come, what is left from before; empty where there is neither."""
    said = []
    if data.to_come:
        said += [f"Done: {', '.join(data.done)}."] if data.done else []
        said.append(f"Still to come: {', '.join(data.to_come)}.")
    if data.earlier:
        said.append(f"Not shown, of earlier pairs or settings: {', '.join(data.earlier)}.")
    return " ".join(said)


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


def _gains(data: ReportData) -> list[Any]:
    """The final model's rows of the table that have a gain; neutral metrics left out."""
    if data.table is None or data.table.empty:
        return []
    own = data.table[data.table["model"] == final_model(data)]
    rows = [row for row in own.itertuples() if not math.isnan(row.gain)]
    return [row for row in rows if not labels.neutral(row.metric)]


def _first_gain(data: ReportData) -> Any:
    """The first of them, or None."""
    return next(iter(_gains(data)), None)


def _gained(row: Any, data: ReportData) -> str:
    metric, name = labels.plain_label(row.metric), labels.model_label(row.model, data.labels)
    before, after = _before_after(row)
    if row.gain_low > 0 or row.gain_high < 0:
        text = (
            f"{metric} {'rises' if row.gain > 0 else 'falls'} on average from {before} (the model "
            f"before training) to {after} (after {name}): {_gain(row)}"
        )
        text += ", which is worse." if _is_worse(row) else "."
    else:
        text = (
            f"No clear difference: {metric} is on average {before} for the model before training "
            f"and {after} after {name} ({_gain(row)})."
        )
    for view in data.prompt_gains:
        if view.metric == row.metric:
            prompts = _several(len(view.gains), "prompt")
            text += f" Better on {view.wins:,} of {prompts}, worse on {view.losses:,}."
    worse = [own for own in _gains(data) if own.metric != row.metric and _is_worse(own)]
    for own in worse:
        shown = labels.plain_label(own.metric)
        text += f" Worse: {shown}, from {' to '.join(_before_after(own))} ({_gain(own)})."
    return text


def _before_after(row: Any) -> tuple[str, str]:
    before = labels.score_text(row.metric, row.mean - row.gain)
    return before, labels.score_text(row.metric, row.mean)


def _gain(row: Any) -> str:
    gain = gain_words(row.metric, row.gain)
    interval = labels.interval_text(row.metric, row.gain_low, row.gain_high)
    return f"{gain}, 95% interval {interval}" if interval else f"{gain}, no interval"


def _is_worse(row: Any) -> bool:
    """Whether the mean went the wrong way, by more than the page rounds to zero.

    A metric without an interval, FID, always moves a little: it is left to the table.
    """
    if not labels.interval_text(row.metric, row.gain_low, row.gain_high):
        return False
    lost = row.gain if labels.lower_is_better(row.metric) else -row.gain
    return bool(lost >= 0.5 * 10.0 ** -labels.digits(row.metric))


def _several(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"

"""What trackers are told of a run's evaluation: its table, few numbers, one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raypref.core.tracking import Tracker
from raypref.evaluate.labels import gain_text, interval_text, model_label
from raypref.evaluate.labels import plain_label as label
from raypref.evaluate.summary import verdict

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("mean", "low", "high", "gain", "gain_low", "gain_high")
NAMED = 3  # metrics in the sentence


def record_evaluation(
    tracker: Tracker, summary: pd.DataFrame, *, final: str, labels: Mapping[str, str], page: str
) -> None:
    """Record an evaluation.

    Args:
        tracker: of the run.
        summary: of `statistics.summarise`, base first.
        final: the model that the run is about; where it was not evaluated, the last one counts.
        labels: names of the models for people, as `Run.labels`.
        page: path of the run's page; empty: none was made.
    """
    models = list(dict.fromkeys(summary["model"]))
    shown = final if final in models else models[-1]
    rows = [
        [model_label(row["model"], labels), label(row["metric"]), *(row[c] for c in COLUMNS)]
        for row in summary.to_dict("records")
    ]
    tracker.table("evaluation", ["model", "metric", *COLUMNS], rows)
    own = summary[summary["model"] == shown]
    gains = own[own["gain"].notna()]
    tracker.numbers(
        {f"eval/{shown}/{m}": v for m, v in zip(own["metric"], own["mean"], strict=True)}
        | {f"gain/{shown}/{m}": v for m, v in zip(gains["metric"], gains["gain"], strict=True)}
    )
    said = sentence(gains, shown, base=models[0], labels=labels)
    tracker.describe(f"{said} Page: `{page}`" if page else said)


def sentence(gains: pd.DataFrame, model: str, *, base: str, labels: Mapping[str, str]) -> str:
    """What a model gained, in one sentence, by the first metrics.

    Args:
        gains: its rows of `statistics.summarise` that have a gain.
        model: its name.
        base: the model that gains are measured against.
        labels: names of the models for people.
    """
    if gains.empty:
        return f"{model_label(model, labels)} was evaluated."
    told = [
        f"{label(row.metric)} {gain_text(row.metric, row.gain)} "
        f"{interval_text(row.metric, row.gain_low, row.gain_high)} ({verdict(row)})"
        for row in gains.head(NAMED).itertuples()
    ]
    return f"{model_label(model, labels)} against {model_label(base, labels)}: {', '.join(told)}."

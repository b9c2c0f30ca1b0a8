"""What trackers are told of a run: its evaluation as table, numbers, a sentence; shared curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypref.core.ledger import Ledger, join, read_bytes
from raypref.core.tracking import Tracker
from raypref.evaluate.labels import gain_text, interval_text, model_label
from raypref.evaluate.labels import plain_label as label
from raypref.evaluate.summary import verdict

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("mean", "low", "high", "gain", "gain_low", "gain_high")
NAMED = 3  # metrics in the sentence
PICTURED = 4  # prompts whose images are recorded
NO_IMAGES: Mapping[str, Ledger] = {}


def record_evaluation(
    tracker: Tracker,
    summary: pd.DataFrame,
    *,
    final: str,
    labels: Mapping[str, str],
    page: str,
    at: str = "evaluation",
    main: bool = True,
    images: Mapping[str, Ledger] = NO_IMAGES,
) -> None:
    """Record an evaluation.

    Args:
        tracker: of the run.
        summary: of `statistics.summarise`, base first.
        final: the model that the run is about; where it was not evaluated, the last one counts.
        labels: names of the models for people, as `Run.labels`.
        page: path of the run's page; empty: none was made.
        at: its place in the run's folder, `evaluation` or `evaluation/NAME`.
        main: whether it is the one that describes the run.
        images: the images of each model; a few of the base's and of the shown model's are recorded
            where something but MLflow keeps records.
    """
    models = list(dict.fromkeys(summary["model"]))
    shown = final if final in models else models[-1]
    rows = [
        [model_label(row["model"], labels), label(row["metric"]), *(row[c] for c in COLUMNS)]
        for row in summary.to_dict("records")
    ]
    tracker.table(at, ["model", "metric", *COLUMNS], rows)
    own = summary[summary["model"] == shown]
    gains = own[own["gain"].notna()]
    means, gained = (at.replace("evaluation", word, 1) for word in ("eval", "gain"))
    tracker.numbers(
        {f"{means}/{shown}/{m}": v for m, v in zip(own["metric"], own["mean"], strict=True)}
        | {f"{gained}/{shown}/{m}": v for m, v in zip(gains["metric"], gains["gain"], strict=True)}
    )
    if not main:
        return
    said = sentence(gains, shown, base=models[0], labels=labels)
    if tracker.takes_images:
        for model in dict.fromkeys([models[0], shown]):
            if model in images:
                tracker.images(f"samples/{model}", first_images(images[model]))
    tracker.describe(f"{said} Page: `{page}`" if page else said)


def record_curves(tracker: Tracker, trained: Mapping[str, Ledger]) -> None:
    """Record the curves of trainings that another run did.

    Args:
        tracker: of the run.
        trained: the ledgers of these trainings, by name.
    """
    for name, ledger in trained.items():
        data = read_bytes(join(ledger.path, "metrics.parquet"))
        if data is not None:
            tracker.history(pq.read_table(pa.BufferReader(data)).to_pylist(), prefix=name)


def first_images(ledger: Ledger) -> dict[str, bytes]:
    """The images of the first prompts by the lowest seed, encoded, by their prompts."""
    first = pc.field("prompt_id") < PICTURED
    rows = ledger.table(["prompt_id", "prompt", "seed", "image"], where=first).to_pylist()
    seed = min((row["seed"] for row in rows), default=0)
    shown = [row for row in rows if row["seed"] == seed]
    return {row["prompt"]: row["image"] for row in sorted(shown, key=lambda r: r["prompt_id"])}


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

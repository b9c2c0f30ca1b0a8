"""What the page shows of labels and of prompts: funnel, histograms, lost ones, gallery."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raypref.core.ledger import Ledger, join
from raypref.core.rows import Row
from raypref.pairs.config import PairingConfig
from raypref.pairs.kinds import kind_of
from raypref.report.gallery import pictured
from raypref.report.reasons import keeps_label
from raypref.report.views import Dropped, DroppedFor, FunnelStep, Histogram, InputsView, PairView

PARTS_SHOWN = 32  # of the pairs; there may be hundreds of thousands
LINES = 40  # of labels per reason
NUMBERS = ("gap", "gap_std", "vote_share", "confidence", "score", "flipped")
MODELS = ("chosen_model", "rejected_model")
HISTOGRAMS = {
    "gap": ("Gap", "of the pairs; the mean is 1"),
    "vote_share": ("Vote share", "of votes for the chosen image"),
    "confidence": ("Confidence", "of the pairs' labels, as the source says it"),
    "score": ("Score", "of the labelled images"),
}
MOST_VALUES = 1_000_000  # in a histogram


def label_inputs(folder: str, config: PairingConfig, pairs: Ledger) -> InputsView:
    """All of it, of complete pairs.

    Args:
        folder: the run's.
        config: the settings that the pairs were made by.
        pairs: the complete pairs.
    """
    counts = Counter[str](pairs.manifest()["counts"])
    pictured = bool(kind_of(config).sides)
    shown = _gallery(pairs, report=join(folder, "report")) if pictured else []
    return InputsView(
        funnel=_funnel(counts, config),
        histograms=_histograms(pairs),
        dropped=_lost(folder, counts, config),
        pairs=shown,
        pairs_are=_are(config, shown, counts["pair"]) if pictured else "",
    )


def _are(config: PairingConfig, shown: list[PairView], count: int) -> str:
    said = ["Left the image that people chose, right the other one."]
    if config.pairs.kind == "images":
        said = ["Images that people judged one by one, with their scores."]
    if any(view.chosen_model for view in shown):
        said.append("Beside each stands its generator.")
    if any(view.numbers.get("gap") is not None for view in shown):
        said.append("The gap is how much better the chosen image is expected to be; its mean is 1.")
    if len(shown) < count:
        said.append(f"Shown are {len(shown):,} of {count:,}, evenly spread over the source.")
    return " ".join([*said, "A click enlarges."])


def _funnel(counts: Counter[str], config: PairingConfig) -> list[FunnelStep]:
    filters = kind_of(config).filters
    known = {reason for _, reasons in filters for reason in reasons} | {"pair"}
    left = counts.total()
    steps = [FunnelStep(name=f"{kind_of(config).terms.input}s found", remaining=left)]
    unusable = {reason: n for reason, n in counts.items() if reason not in known}
    left -= sum(unusable.values())
    steps.append(FunnelStep(name="usable", remaining=left, dropped=unusable))
    for name, reasons in filters:
        dropped = {reason: counts[reason] for reason in reasons if counts[reason]}
        left -= sum(dropped.values())
        if dropped:
            steps.append(FunnelStep(name=name, remaining=left, dropped=dropped))
    return steps


def _histograms(pairs: Ledger) -> list[Histogram]:
    found = []
    for column, (title, note) in HISTOGRAMS.items():
        if column in pairs.schema().names:
            values = _values(pairs, column)
            if len(np.unique(values)) > 1:
                found.append(Histogram(title, note, values, None))
    return found


def _values(pairs: Ledger, column: str) -> np.ndarray:
    """The numbers of a column, of at most `MOST_VALUES` rows."""
    some: list[np.ndarray] = []
    for batch in pairs.batches([column]):
        some.append(batch[column].drop_null().to_numpy(zero_copy_only=False))
        if sum(map(len, some)) >= MOST_VALUES:
            break
    values = np.concatenate([np.empty(0), *some]).astype(np.float64)
    return values[np.isfinite(values)]


def _lost(folder: str, counts: Counter[str], config: PairingConfig) -> list[DroppedFor]:
    """The labels that became no pair, by reason: the first of each, as lines."""
    order = [reason for _, reasons in kind_of(config).filters for reason in reasons]
    reasons = sorted(
        (reason for reason in counts if reason != "pair" and counts[reason]),
        key=lambda own: order.index(own) if own in order else -1,
    )
    inputs = Ledger(join(folder, kind_of(config).terms.table), {})
    rows = {reason: _first(inputs, reason) for reason in reasons}
    ids = [row["id"] for some in rows.values() for row in some]
    messages = _messages(Ledger(join(folder, "rejects"), {}), ids)
    return [
        DroppedFor(
            reason=reason,
            count=counts[reason],
            keep=keeps_label(reason, config),
            shown=[
                Dropped(row["id"], row["prompt"] or "", messages.get(row["id"], ""), None)
                for row in rows[reason]
            ],
            listed=True,
        )
        for reason in reasons
    ]


def _first(labels: Ledger, reason: str) -> list[Row]:
    found: list[Row] = []
    if not labels.parts():  # removed to save space
        return found
    for row in labels.rows(["id", "prompt"], where=pc.field("reason") == reason):
        found.append(row)
        if len(found) == LINES:
            break
    return found


def _messages(rejects: Ledger, ids: list[str]) -> dict[str, str]:
    if not rejects.parts() or not ids:
        return {}
    rows = rejects.rows(["id", "message"], where=pc.field("id").isin(ids))
    return {row["id"]: row["message"] or "" for row in rows}


def _gallery(pairs: Ledger, *, report: str) -> list[PairView]:
    """Some of the pairs, in the order of the source: whole parts, which lie evenly spread."""
    names = pairs.parts()
    step = max(1, math.ceil(len(names) / PARTS_SHOWN))
    shown = names[::step]
    columns = pairs.schema().names
    numbers = [name for name in NUMBERS if name in columns]
    models = [name for name in MODELS if name in columns]
    facts: list[Mapping[str, Any]] = []
    for name in shown:
        for row in pairs.part(name, ["prompt", *models, *numbers]).to_pylist():
            facts.append(
                {
                    "rank": len(facts),
                    "prompt": row["prompt"],
                    **{model: row[model] or "" for model in models},
                    "numbers": {n: _number(row[n]) for n in numbers},
                }
            )
    kinds = ("chosen", "rejected") if "rejected_model" in columns else ("chosen",)
    return pictured(pairs, facts, _images(pairs, shown, kinds), report=report, kinds=kinds)


def _number(value: float | bool | None) -> float | None:
    """Whether a label was turned round is told where it was."""
    if isinstance(value, bool):
        return 1.0 if value else None
    return value


def _images(pairs: Ledger, names: list[str], kinds: tuple[str, ...]) -> Iterator[Row]:
    rank = 0
    for name in names:
        for row in pairs.part(name, list(kinds)).to_pylist():
            yield {"rank": rank, **row}
            rank += 1

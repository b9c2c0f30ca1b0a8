"""What the page shows of photographs and their twins: funnel, histograms, dropped ones, gallery."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd

from raypref.core.ledger import Ledger, join
from raypref.pairs.config import TWINS, PairingConfig
from raypref.pairs.kinds import KINDS
from raypref.report.dropped import dropped
from raypref.report.gallery import gallery
from raypref.report.views import DroppedFor, FunnelStep, Histogram, InputsView

COLORFULNESS = "Colorfulness"
REPAINTED = "the same, with the tinted region repainted from its caption"
DRAWN = "a picture drawn from the caption alone"
FILTERS = KINDS[TWINS].filters
Filters: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]


def photograph_inputs(folder: str, config: PairingConfig, pairs: Ledger) -> InputsView:
    """All of it, of a complete curation.

    Args:
        folder: the run's.
        config: the settings of the curation.
        pairs: the complete pairs.
    """
    histograms = _histograms(folder, config.select.min_gap)
    region = "salient region" if config.holes.kind == "saliency" else "hole"
    rejected_is = DRAWN if config.perturb.kind == "text2image" else REPAINTED
    return InputsView(
        funnel=photograph_funnel(folder, FILTERS, min_gap=config.select.min_gap),
        histograms=histograms,
        dropped=dropped_photographs(folder, config, FILTERS, mean=mean_colorfulness(histograms)),
        pairs=gallery(pairs, report=join(folder, "report")),
        pairs_are=f"Left the chosen image, a photograph. Middle the same, its "
        f"{region} tinted. Right the rejected one: {rejected_is}. "
        "Numbers are PickScore; a click enlarges.",
    )


def mean_colorfulness(histograms: Sequence[Histogram]) -> float | None:
    """Where the filter by colorfulness cut; None where it was off."""
    return next((h.threshold for h in histograms if h.title == COLORFULNESS), None)


def dropped_photographs(
    folder: str, config: PairingConfig, filters: Filters, *, mean: float | None
) -> list[DroppedFor]:
    """The photographs that became no pair, by reason.

    Args:
        folder: the run's.
        config: the settings of the curation.
        filters: of the kind of pairs, in order.
        mean: the mean colorfulness of the set, where it was the threshold.
    """
    if config.color.variant != "paper":
        mean = None
    order = [reason for _, reasons in filters for reason in reasons]
    return dropped(folder, config, report=join(folder, "report"), mean=mean, order=order)


def photograph_funnel(folder: str, filters: Filters, *, min_gap: float = 0.0) -> list[FunnelStep]:
    """How many photographs were left after each filter of the kind of pairs.

    Args:
        folder: the run's.
        filters: what is left and the reasons for the rest, in order.
        min_gap: of twins.
    """
    photos = _read(join(folder, "photos"), ["status", "reason"])
    left = len(photos)
    steps = [FunnelStep(name=f"photographs found{_captioned(folder)}", remaining=left)]
    rejected = photos[photos["status"] == "rejected"]["reason"].value_counts().to_dict()
    left -= sum(rejected.values())
    steps.append(FunnelStep(name="usable", remaining=left, dropped=rejected))
    for name, reasons in filters:
        dropped = {r: int((photos["reason"] == r).sum()) for r in reasons}
        dropped = {reason: count for reason, count in dropped.items() if count}
        left -= sum(dropped.values())
        label = f"{name} (gap over {min_gap})" if "degradation" in reasons[0] else name
        steps.append(FunnelStep(name=label, remaining=left, dropped=dropped))
    return steps


def _captioned(folder: str) -> str:
    """How many captions a model wrote; empty where none was asked to."""
    ledger = Ledger(join(folder, "photos"), {})
    if "caption_source" not in ledger.schema().names:
        return ""
    sources = Counter(ledger.table(["caption_source"])["caption_source"].to_pylist())
    models = sorted({*sources} - {None, "given"})
    return "".join(f", {sources[model]} captioned by {model}" for model in models)


def _histograms(folder: str, min_gap: float) -> list[Histogram]:
    gaps = _gaps(folder)
    note = "chosen minus rejected, all pairs tried"
    shown = [Histogram("PickScore gap", note, gaps, min_gap)] if len(gaps) else []
    return [*colorfulness_histogram(folder), *shown]


def colorfulness_histogram(folder: str) -> list[Histogram]:
    """How colorful the photographs are and where the filter cut; empty where it was not measured.

    Args:
        folder: the run's.
    """
    photos = _read(join(folder, "photos"), ["colorfulness", "status", "reason"])
    distinct = photos[photos["colorfulness"].notna() & ~photos["reason"].isin(FILTERS[0][1])]
    values = distinct["colorfulness"].to_numpy(np.float64)
    # Curation keeps what is above the mean of the very same set, unless the filter is off.
    cut = (distinct["reason"] == "low_colorfulness").any()
    threshold = math.fsum(values) / len(values) if cut else None
    if not len(values):
        return []
    return [Histogram(COLORFULNESS, "usable, distinct photographs", values, threshold)]


def _gaps(folder: str) -> np.ndarray:
    ledger = Ledger(join(folder, "curate", "twins"), {})
    if not ledger.parts():  # removed to save space
        return np.empty(0)
    # Workers may have made a few pairs more than were needed, a different few in every run.
    photos = _read(join(folder, "photos"), ["reason"])
    tried = photos.loc[~photos["reason"].isin(["not_needed", "outside_pool"]), "id"]
    scores = ledger.table(["pickscore", "pickscore_rejected"]).to_pandas()
    scores = scores[scores["id"].isin(tried)]
    gaps = (scores["pickscore"] - scores["pickscore_rejected"]).to_numpy(np.float64)
    return gaps[np.isfinite(gaps)]


def _read(folder: str, columns: list[str]) -> pd.DataFrame:
    return Ledger(folder, {}).table(columns).to_pandas()

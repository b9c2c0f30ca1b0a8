"""Gathers what the report shows from the tables a run has written."""

from __future__ import annotations

import datetime
import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from raypref.evaluate.tables import MODELS, Published
from raypref.ledger import Ledger, join, read_bytes
from raypref.report.page import (
    Cost,
    FunnelStep,
    GridRow,
    PairView,
    Reject,
    ReportData,
    TrainingView,
)

MOST_PAIRS = 24
MOST_GRIDS = 8
MOST_REJECTS = 30
TITLES = {
    "stage1": "Stage 1: distribution alignment with real images",
    "stage2": "Stage 2: preference learning on pairs",
    "stage2_alone": "Stage 2 alone, from the base model",
}
# The filters in their order, with the reasons they give.
FILTERS = (
    ("distinct", ("duplicate",)),
    ("above the mean colorfulness", ("low_colorfulness",)),
    ("visibly degraded", ("negligible_degradation",)),
    ("best by PickScore", ("beyond_top_k",)),
)


def collect(
    *,
    name: str,
    config_toml: str,
    seed: int,
    record: Mapping[str, Any],
    folder: str,
    pairs: Ledger,
    min_gap: float,
    trained: Mapping[str, Ledger],
    images: Ledger,
    table: pd.DataFrame | None,
    published: Published,
) -> ReportData:
    """Read a run's tables; what a run has not made yet is left out.

    Args:
        name: the run's name.
        config_toml: the resolved configuration.
        seed: the run's seed.
        record: content of `run.json`.
        folder: the run's folder.
        pairs: the pairs.
        min_gap: the gap filter's threshold, for the funnel.
        trained: the trainings by name.
        images: the evaluation's images.
        table: the evaluation's summary, if there is one.
        published: the paper's numbers beside it.
    """
    curated = pairs.state() == "complete"
    return ReportData(
        title=f"raypref: {name}",
        subtitle=f"seed {seed}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        config_toml=config_toml,
        facts=[(key, value) for key, value in record.get("versions", {}).items() if value],
        funnel=_funnel(folder, min_gap) if curated else [],
        rejects_examples=_rejects(folder) if curated else [],
        pairs=_pairs(pairs) if curated else [],
        training=[view for n in trained if (view := _training(folder, n)) is not None],
        grids=_grids(images) if images.state() == "complete" else [],
        table=table,
        published=published,
        costs=[_cost(step, facts) for step, facts in record["steps"].items()],
    )


def _funnel(folder: str, min_gap: float) -> list[FunnelStep]:
    photos = _read(join(folder, "photos"), ["status", "reason"])
    left = len(photos)
    steps = [FunnelStep(name="photographs found", remaining=left)]
    rejected = photos[photos["status"] == "rejected"]["reason"].value_counts().to_dict()
    left -= sum(rejected.values())
    steps.append(FunnelStep(name="usable", remaining=left, dropped=rejected))
    for name, reasons in FILTERS:
        dropped = {r: int((photos["reason"] == r).sum()) for r in reasons}
        dropped = {reason: count for reason, count in dropped.items() if count}
        left -= sum(dropped.values())
        label = f"{name} (gap over {min_gap})" if "degradation" in reasons[0] else name
        steps.append(FunnelStep(name=label, remaining=left, dropped=dropped))
    return steps


def _rejects(folder: str) -> list[Reject]:
    columns = ["uri", "stage", "reason", "message"]
    rows = _read(join(folder, "rejects"), columns).head(MOST_REJECTS)
    return [Reject(*row) for row in rows[columns].itertuples(index=False)]


def _pairs(ledger: Ledger) -> list[PairView]:
    ranks = ledger.table(["rank"]).to_pylist()
    wanted = {row["id"] for row in ranks if row["rank"] < MOST_PAIRS}
    views = [
        PairView(
            prompt=row["prompt"],
            chosen=row["chosen"]["bytes"],
            mask=row["mask"]["bytes"],
            rejected=row["rejected"]["bytes"],
            pickscore_chosen=row["pickscore_chosen"],
            pickscore_rejected=row["pickscore_rejected"],
            colorfulness=row["colorfulness"],
            rank=row["rank"] + 1,
        )
        for row in ledger.rows()
        if row["id"] in wanted
    ]
    return sorted(views, key=lambda view: view.rank)


def _training(folder: str, name: str) -> TrainingView | None:
    data = read_bytes(join(folder, name, "metrics.parquet"))
    if data is None:
        return None
    metrics = pq.read_table(io.BytesIO(data)).to_pandas()
    return TrainingView(
        name=TITLES.get(name, name), metrics=metrics.rename(columns={"seconds": "seconds_per_step"})
    )


def _grids(images: Ledger) -> list[GridRow]:
    facts = images.table(["prompt_id", "seed"]).to_pandas()
    places = facts[["prompt_id", "seed"]].drop_duplicates().sort_values(["seed", "prompt_id"])
    shown = [tuple(place) for place in places.head(MOST_GRIDS).itertuples(index=False)]
    rows: dict[tuple[int, int], dict[str, bytes]] = {place: {} for place in shown}
    prompts = {}
    for row in images.rows():
        place = (row["prompt_id"], row["seed"])
        if place in rows:
            rows[place][row["model"]] = row["image"]
            prompts[place] = row["prompt"]
    return [
        GridRow(
            prompt=prompts[p], seed=p[1], images={m: rows[p][m] for m in MODELS if m in rows[p]}
        )
        for p in shown
    ]


def _cost(step: str, facts: Mapping[str, Any]) -> Cost:
    seconds, amount = facts["seconds"], facts["amount"]
    rate = f"{amount / seconds:.2f} {facts['unit']}/s" if seconds and amount else ""
    return Cost(step, seconds, amount, rate, facts["state"])


def _read(folder: str, columns: list[str]) -> pd.DataFrame:
    return Ledger(folder, {}).table(columns).to_pandas()

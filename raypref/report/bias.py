"""Bias of the rewards that made a run's pairs: measured from what is stored, as tables and words.

No model is run. The looks of the candidates are kept in `bias/looks`, so a page that is written
again reads them; the numbers lie beside them as `within.csv`, `tilt.csv` and `bias.md`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import Ledger, join, part_name, write_bytes
from raypref.core.progress import Progress
from raypref.evaluate.bias import (
    EXPLAINED,
    RULE,
    Looks,
    bias_markdown,
    cell_text,
    reward_text,
    tilt,
    within_holes,
)
from raypref.evaluate.labels import (
    IN_HOLE,
    gain_text,
    interval_text,
    lower_is_better,
    model_label,
    neutral,
)
from raypref.evaluate.tables import plain_csv
from raypref.images.looks import LOOKS, looks
from raypref.report.candidate_rows import PHOTOGRAPH, Candidates
from raypref.report.pictures import open_image
from raypref.report.views import BiasTable, BiasView, ReportData

MOST_HOLES = 256  # measured; 16 candidates each make intervals of about ±0.03
THREADS = 4
PROGRESS_SECONDS = 10.0
HOLE, PICTURE = "hole", "picture"
TITLES = {HOLE: "In the hole", PICTURE: "In the whole picture"}
DRIFT = "Trained models: mean of the model minus the base's, same prompts and noise."


def bias_of_rewards(folder: str, candidates: Candidates, pairs: Ledger) -> BiasView | None:
    """Measure it and write the tables; None where the candidates are no longer stored.

    Args:
        folder: the run's.
        candidates: of the run.
        pairs: the complete pairs.
    """
    keys = candidates.first_keys(MOST_HOLES)
    if not keys:
        return None
    facts = pairs.table(
        ["key", "candidate_chosen", "candidate_rejected", "rule"], where=pc.field("key").isin(keys)
    ).to_pylist()
    rule = str(facts[0]["rule"]) if facts else "none"
    numbers = candidates.numbers
    measured = _measured(folder, candidates, keys)
    wide = {
        name: _wide(measured, name, keys, [PHOTOGRAPH, *numbers])
        for name in measured.columns.drop(["key", "candidate"])
    }
    own: Looks = {_where_and_what(name): values[:, 1:] for name, values in wide.items()}
    sides = [_sides(wide, facts, keys, f"candidate_{side}") for side in ("chosen", "rejected")]
    known = candidates.scores_of(keys)
    # What a reward prefers, where less of its score is better too.
    scores = {
        name: _wide(known, name, keys, numbers) * (-1.0 if lower_is_better(name) else 1.0)
        for name in candidates.rewards
    }
    found = within_holes(scores, own)
    tilted = tilt(own, *sides)
    target = join(folder, "bias")
    for name, text in {
        "within.csv": plain_csv(found),
        "tilt.csv": plain_csv(tilted),
        "bias.md": bias_markdown(found, tilted, rule=rule),
    }.items():
        write_bytes(join(target, name), text.encode())
    return _view(found, tilted, rule=rule, holes=len(keys), of=candidates.count)


def _measured(folder: str, candidates: Candidates, keys: Sequence[str]) -> pd.DataFrame:
    """Looks of the candidates and of the photographs: one row per image; measured once."""
    numbers = [*([PHOTOGRAPH] if candidates.have_photographs else []), *candidates.numbers]
    made = {n: candidates.images(n).begun().get("fingerprint", "") for n in candidates.numbers}
    made |= {PHOTOGRAPH: candidates.holes.begun().get("fingerprint", "")}
    settings = {
        "images": {str(n): own for n, own in made.items()},
        "holes": fingerprint({"keys": keys}),
    }
    ledger = Ledger(join(folder, "bias", "looks"), settings)
    if ledger.state() == "stale":
        ledger.clear()
    if ledger.state() != "complete":
        ledger.begin()
        total = len(keys) * len(numbers)
        progress = Progress("report", total=total, unit="images", every=PROGRESS_SECONDS)
        masks = _masks(candidates, keys)
        for number in numbers:
            # A name that sorts like the numbers do, the photographs first.
            name = part_name(f"{number - PHOTOGRAPH:05d}")
            if not ledger.has_part(name):
                rows = _looks_of(candidates, number, keys, masks)
                ledger.write_part(_table(rows, number, have_holes=bool(masks)), name)
            progress.add(len(keys), note="looks of candidates")
        ledger.commit(expected=ledger.count(), counts={})
    return ledger.table().to_pandas().drop(columns="id")


def _masks(candidates: Candidates, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """True in the hole, by key."""
    found = {}
    for some in candidates.rows(PHOTOGRAPH, candidates.find(PHOTOGRAPH, keys)):
        for row in some:
            if row["mask"] is not None:
                mask = open_image(row["mask"]["bytes"]).convert("L")
                # As bits: hundreds of masks are held at once.
                found[row["key"]] = np.packbits(np.asarray(mask) >= 128)
    return found


def _looks_of(
    candidates: Candidates, number: int, keys: Sequence[str], masks: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(THREADS) as pool:
        for some in candidates.rows(number, candidates.find(number, keys)):
            found += pool.map(partial(_look, masks), some)
    return found


def _look(masks: Mapping[str, np.ndarray], row: Mapping[str, Any]) -> dict[str, Any]:
    data = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
    image = open_image(data).convert("RGB")
    found = {f"{PICTURE}_{name}": value for name, value in looks(image).items()}
    if row["key"] in masks:
        bits = np.unpackbits(masks[row["key"]], count=image.width * image.height)
        region = bits.reshape(image.height, image.width).astype(bool)
        found |= {f"{HOLE}_{name}": value for name, value in looks(image, region).items()}
    return {"key": row["key"], **found}


def _table(rows: list[dict[str, Any]], number: int, *, have_holes: bool) -> pa.Table:
    places = [HOLE, PICTURE] if have_holes else [PICTURE]
    values = [(f"{where}_{name}", pa.float64()) for where in places for name in LOOKS]
    text = pa.string()
    schema = pa.schema([("id", text), ("key", text), ("candidate", pa.int32()), *values])
    named = [{**row, "id": f"{row['key']}/{number}", "candidate": number} for row in rows]
    return pa.Table.from_pylist(named, schema=schema)


def _where_and_what(column: str) -> tuple[str, str]:
    where, _, name = column.partition("_")
    return where, name


def _wide(rows: pd.DataFrame, name: str, keys: Sequence[str], numbers: Sequence[int]) -> np.ndarray:
    """A column as [holes, candidates]; NaN where there is no row."""
    wide = rows.pivot_table(index="key", columns="candidate", values=name, dropna=False)
    return wide.reindex(index=list(keys), columns=list(numbers)).to_numpy(np.float64)


def _sides(
    wide: Mapping[str, np.ndarray], facts: Sequence[Mapping[str, Any]], keys: Sequence[str], of: str
) -> Looks:
    """The looks of each hole's chosen or rejected image, [holes]; NaN without a pair."""
    number_of = {row["key"]: row[of] for row in facts}
    columns = np.array([number_of.get(key, -2) + 1 for key in keys])  # the photograph is the first
    rows = np.arange(len(keys))
    return {
        _where_and_what(name): np.where(columns < 0, math.nan, values[rows, columns])
        for name, values in wide.items()
    }


def _view(found: pd.DataFrame, tilted: pd.DataFrame, *, rule: str, holes: int, of: int) -> BiasView:
    tables = []
    for where in dict.fromkeys(tilted["where"]):
        own, last = found[found["where"] == where], tilted[tilted["where"] == where]
        rows = [
            (reward_text(str(reward), rule), _cells(part, "spearman"))
            for reward, part in own.groupby("reward", sort=False)
        ]
        rows.append(("tilt: chosen minus rejected", _cells(last, "tilt")))
        tables.append(BiasTable(TITLES[where], list(last["property"]), rows))
    some = f"Measured on {holes:,} of {of:,} holes or prompts." if holes < of else ""
    sentences = [_strongest(found), _tilted(tilted), some]
    return BiasView([said for said in sentences if said], tables, EXPLAINED)


def _cells(rows: pd.DataFrame, column: str) -> list[str]:
    return [cell_text(*each) for each in rows[[column, "low", "high"]].to_numpy().tolist()]


def _strongest(found: pd.DataFrame) -> str:
    """The strongest correlation of a reward, in words."""
    own = found[(found["reward"] != RULE) & found["spearman"].notna()]
    decided = own[(own["low"] > 0) | (own["high"] < 0)]
    if decided.empty:
        return "No reward ranks the candidates by their looks: every interval includes 0."
    row = decided.loc[decided["spearman"].abs().idxmax()]
    more = "more" if row["spearman"] > 0 else "less"
    value = cell_text(row["spearman"], row["low"], row["high"])
    return (
        f"The strongest bias: {reward_text(row['reward'], '')} ranks candidates with {more} "
        f"{row['property']} {_in(row['where'])} higher (Spearman {value}); the intervals of "
        f"{len(decided)} of {len(own)} correlations exclude 0."
    )


def _tilted(tilted: pd.DataFrame) -> str:
    decided = tilted[(tilted["low"] > 0) | (tilted["high"] < 0)]
    if decided.empty:
        return "The pairs are not tilted: every interval includes 0."
    row = decided.loc[decided["tilt"].abs().idxmax()]
    more = "more" if row["tilt"] > 0 else "less"
    value = cell_text(row["tilt"], row["low"], row["high"])
    return (
        f"The chosen images have {more} {row['property']} {_in(row['where'])} than the rejected "
        f"ones: {value} standard deviations, the largest tilt."
    )


def _in(where: str) -> str:
    return "in the hole" if where == HOLE else "in the picture"


def drift_tables(data: ReportData) -> list[BiasTable]:
    """What trainings changed besides quality: gains of looks over the base, where measured.

    Args:
        data: of the page; its table is of `statistics.summarise`.
    """
    if data.table is None or data.table.empty:
        return []
    rows = data.table[data.table["metric"].map(neutral) & data.table["gain"].notna()]
    tables = []
    for where, title in TITLES.items():
        own = rows[rows["metric"].str.endswith(IN_HOLE) == (where == HOLE)]
        metrics = list(dict.fromkeys(own["metric"]))
        if not metrics:
            continue
        cells = {(row.model, row.metric): _drift(row) for row in own.itertuples()}
        lines = [
            (model_label(str(model), data.labels), [cells.get((model, m), "–") for m in metrics])
            for model in dict.fromkeys(own["model"])
        ]
        names = [metric.removesuffix(IN_HOLE) for metric in metrics]
        tables.append(BiasTable(f"Drift {title[0].lower()}{title[1:]}", names, lines))
    return tables


def _drift(row: Any) -> str:
    interval = interval_text(row.metric, row.gain_low, row.gain_high)
    return f"{gain_text(row.metric, row.gain)} {interval}".strip()

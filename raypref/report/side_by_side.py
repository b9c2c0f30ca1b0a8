"""The page that shows the same prompt and seed across models, sortable by each reward's gain.

It holds its pictures, small, within itself: it can be sent alone. The script draws a page of rows
at a time from one list, so hundreds of rows cost no more to open than ten.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from PIL import Image

from raypref.core.fingerprints import fingerprint
from raypref.core.ledger import Ledger, join, read_bytes, write_bytes
from raypref.evaluate.labels import (
    digits,
    lower_is_better,
    metric_label,
    metric_names,
    model_label,
    ordered,
)
from raypref.report.layout import fill
from raypref.report.pictures import PIXELATED, data_uri, open_image

FILE = "side_by_side.html"
MOST_ROWS = 500  # prompts with a seed; a thousand pictures of 5 kB are what a page can carry
ROWS_A_PAGE = 10
SIDE = 192  # px, longest side of a picture
QUALITY = 80  # of WebP


def write_side_by_side(
    images: Mapping[str, Ledger],
    scores: pd.DataFrame,
    *,
    report: str,
    labels: Mapping[str, str],
    base: str = "base",
) -> bool:
    """Write the page beside the report, unless it is there already; False where nothing compares.

    Args:
        images: complete ledgers of the images, by model.
        scores: of single images, the columns `statistics.SCORES`.
        report: the folder of the page, local or URI.
        labels: names of the models for people, as `Run.labels`.
        base: the model that gains are against.
    """
    if len(images) < 2:
        return False
    numbers = hashlib.sha256(scores.to_csv().encode()).hexdigest()
    made = fingerprint({"scores": numbers} | {m: own.fingerprint for m, own in images.items()})
    path = join(report, FILE)
    before = read_bytes(path)
    if before is None or f"content={made}".encode() not in before[:200]:
        write_bytes(path, render(_data(images, scores, base, labels), made=made).encode())
    return True


def render(data: Mapping[str, Any], *, made: str = "") -> str:
    """The page as HTML text.

    Args:
        data: of `_data`.
        made: what the page was made from; named in its first line.
    """
    return fill(
        "side_by_side.html",
        filters={},
        scripts=("lightbox.js", "side_by_side.js"),
        data=data,
        made=made,
    )


def _data(
    images: Mapping[str, Ledger], scores: pd.DataFrame, base: str, labels: Mapping[str, str]
) -> dict[str, Any]:
    models = ordered(images, (base,))
    metrics = ordered(sorted(scores["metric"].unique()), metric_names())
    facts = scores.drop_duplicates(["prompt_id", "seed"]).sort_values(["seed", "prompt_id"])
    shown = facts.head(MOST_ROWS)
    places = {
        (int(row.prompt_id), int(row.seed)): place for place, row in enumerate(shown.itertuples())
    }
    pictures: list[dict[str, str]] = [{} for _ in places]
    size = (1, 1)
    for model, ledger in images.items():
        for row in ledger.rows(["prompt_id", "seed", "image"]):
            place = places.get((row["prompt_id"], row["seed"]))
            if place is not None:
                size, pictures[place][model] = _small(row["image"])
    known = scores.set_index(["prompt_id", "seed", "model", "metric"])["score"].to_dict()
    return {
        "base": base,
        "models": [[model, model_label(model, labels)] for model in models],
        "metrics": [[m, metric_label(m), digits(m), lower_is_better(m)] for m in metrics],
        "size": ROWS_A_PAGE,
        "side": list(size),
        "pixelated": size[1] <= PIXELATED,
        "total": len(facts),
        "rows": [
            [
                str(row.prompt),
                int(row.seed),
                [pictures[place].get(model, "") for model in models],
                [
                    [_score(known.get((row.prompt_id, row.seed, model, m))) for m in metrics]
                    for model in models
                ],
            ]
            for place, row in enumerate(shown.itertuples())
        ],
    }


def _score(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or math.isnan(value) else round(float(value), 4)


def _small(encoded: bytes) -> tuple[tuple[int, int], str]:
    image = open_image(encoded).convert("RGB")
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return image.size, data_uri(buffer.getvalue(), "image/webp")

"""Writes runs whose pairs were chosen among candidates, for the tests of their page and bias."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image, ImageDraw
from report_runs import fill, gather, png, scene, write_evaluation, write_training

from raypref.core.ledger import Ledger
from raypref.core.rows import IMAGE, INDEX, REJECT
from raypref.pairs.config import PairingConfig, PairsConfig
from raypref.report.views import ReportData
from raypref.sources.index import SourceConfig

TEXT, FLOAT = pa.string(), pa.float64()
HOLES = pa.schema(
    [("id", TEXT), ("key", TEXT), ("prompt", TEXT), ("image", IMAGE), ("mask", IMAGE), *REJECT]
)
IMAGES = pa.schema([("id", TEXT), ("key", TEXT), ("prompt", TEXT), ("image", pa.binary()), *REJECT])
SCORES = pa.schema(
    [("id", TEXT), ("key", TEXT), ("candidate", pa.int32())]
    + [(name, FLOAT) for name in ("pickscore", "bright", "rule")]
)
PAIRS = pa.schema(
    [("id", TEXT), ("key", TEXT), ("prompt", TEXT)]
    + [(name, IMAGE) for name in ("chosen", "rejected", "mask", "source")]
    + [("candidate_chosen", pa.int32()), ("candidate_rejected", pa.int32())]
    + [("score_chosen", FLOAT), ("score_rejected", FLOAT), ("gap", FLOAT), ("rule", TEXT)]
)
PHOTOS = pa.schema(
    [(name, TEXT) for name in ("id", "uri", "caption", "status", "reason")]
    + [("colorfulness", pa.float32()), ("pickscore", pa.float32())]
)


def config(folder: Path) -> PairingConfig:
    source = SourceConfig(path=str(folder / "photographs"))
    return PairingConfig(source=source, pairs=PairsConfig(kind="candidates"))


def key_of(number: int) -> str:
    return hashlib.sha256(f"{number}".encode()).hexdigest()


def image(data: bytes) -> dict[str, Any]:
    return {"bytes": data, "path": "a.png"}


def painted(photo: Image.Image, mask: Image.Image, shade: float, rng: np.random.Generator) -> bytes:
    """The photograph with a shade and a little noise in its hole."""
    side = photo.width
    noise = rng.normal(0, 6, (side, side, 3)) + 255 * shade
    filled = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    return png(Image.composite(filled, photo, mask))


def write_candidates(
    folder: Path,
    *,
    holes: int = 8,
    count: int = 6,
    side: int = 64,
    prompt: str = "a disc, number {number}",
    masked: bool = True,
    chosen: str = "bright",
    order: int = 1,
    photographs: int = 0,
) -> Ledger:
    """A finished making of pairs; returns the ledger of the pairs.

    The reward `bright` is the shade of the hole, `pickscore` a random number.

    Args:
        folder: the run's.
        holes: how many.
        count: candidates of each.
        side: of all images.
        prompt: of each, with its number.
        masked: whether there are holes, or prompts alone.
        chosen: the reward that chooses.
        order: in which candidates lie, forwards or backwards (-1), but for the first.
        photographs: pairs of which the photograph is chosen.
    """
    rng = np.random.default_rng(0)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((side * 0.2, side * 0.3, side * 0.7, side * 0.8), fill=255)
    hole_rows, pair_rows, score_rows = [], [], []
    image_rows: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for hole in range(holes):
        photo = scene(hole, side)
        facts = {"id": f"{hole:06d}", "key": key_of(hole), "prompt": prompt.format(number=hole)}
        shades = rng.permutation(np.linspace(0.1, 0.9, count))
        values = {"bright": shades, "pickscore": 20 + rng.normal(size=count)}
        every = Image.new("L", (side, side), 255)
        data = [painted(photo, mask if masked else every, float(s), rng) for s in shades]
        hole_rows.append({**facts, "image": image(png(photo)), "mask": image(png(mask))})
        rule = values[chosen]
        for number in range(count):
            image_rows[number].append({**facts, "image": data[number]})
            own = {name: float(value[number]) for name, value in values.items()}
            score = {**facts, "id": f"{hole:06d}/{number:02d}", "candidate": number}
            score_rows.append({**score, **own, "rule": float(rule[number])})
        best, worst = int(np.argmax(rule)), int(np.argmin(rule))
        taken = hole < photographs
        pair_rows.append(
            {
                **facts,
                "chosen": image(png(photo) if taken else data[best]),
                "rejected": image(data[worst]),
                "mask": image(png(mask)) if masked else None,
                "source": image(png(photo)) if masked else None,
                "candidate_chosen": -1 if taken else best,
                "candidate_rejected": worst,
                "score_chosen": None if taken else float(rule[best]),
                "score_rejected": float(rule[worst]),
                "gap": None if taken else 1.0,
                "rule": chosen,
            }
        )
    for row in hole_rows if not masked else ():
        row["mask"] = None
    dropped = {"id": "none", "key": key_of(-1), "prompt": "", "reject_reason": "hole_too_small"}
    fill(Ledger(str(folder / "holes"), {}), [dropped, *hole_rows], HOLES)
    for number, rows in enumerate(image_rows):
        at = folder / "candidates" / "images" / f"{number:02d}"
        fill(Ledger(str(at), {"n": number}), rows[:: order if number else 1], IMAGES)
    fill(Ledger(str(folder / "candidates" / "scores"), {}), score_rows, SCORES)
    write_photographs(folder, holes)
    pairs = Ledger(str(folder / "pairs"), {"pairs": holes, "by": chosen})
    fill(pairs, pair_rows, PAIRS)
    return pairs


def write_photographs(folder: Path, pairs: int) -> None:
    """What became of every photograph: a pair, or one of the reasons."""
    reasons = [None] * pairs + ["hole_too_small"] * 3 + ["draw", "too_few_candidates"]
    rows = [
        {
            "id": f"{number:06d}",
            "uri": f"photo-{number}.jpg",
            "caption": "a disc",
            "status": "pair" if not reason else "not_selected" if reason == "draw" else "rejected",
            "reason": reason,
            "colorfulness": 40.0 + number % 9,
        }
        for number, reason in enumerate(reasons)
    ]
    broken = {"id": "broken", "uri": "b.png", "status": "rejected", "reason": "unreadable"}
    fill(Ledger(str(folder / "photos"), {}), [*rows, broken], PHOTOS)
    entries = [{"id": row["id"], "uri": row["uri"], "caption": "a disc"} for row in rows]
    fill(Ledger(str(folder / "curate" / "measured"), {}), entries, INDEX)


def write_evaluated_holes(folder: Path, *, side: int) -> Ledger:
    """Photographs and masks of an evaluation's ten holes; of the last there is no photograph."""
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).rectangle((side // 4, side // 4, side // 2, side // 2), fill=255)
    rows: list[dict[str, Any]] = [
        {
            "id": f"{number}",
            "prompt_id": number,
            "prompt": f"a disc, number {number}",
            "photograph": png(scene(number, side)) if number < 9 else None,
            "mask": png(mask) if number < 9 else None,
        }
        for number in range(10)
    ]
    pictures = [("photograph", pa.binary()), ("mask", pa.binary())]
    facts = [("id", TEXT), ("prompt_id", pa.int64()), ("prompt", TEXT)]
    schema = pa.schema([*facts, *pictures])
    ledger = Ledger(str(folder / "evaluation" / "photographs"), {"size": side})
    fill(ledger, rows, schema)
    return ledger


def make_run(folder: Path, *, side: int = 64, holes: int = 8, count: int = 6) -> ReportData:
    """A whole run of an inpainter in a folder; returns what its page shows."""
    pairs = write_candidates(folder, holes=holes, count=count, side=side)
    photos = [(scene(number, side), f"a disc, number {number}") for number in range(8)]
    for name in ("stage1", "stage2"):
        write_training(folder, name, [photo for photo, _ in photos])
    write_evaluation(folder, photos)
    path = folder / "evaluation" / "scores.parquet"
    scores = pd.read_parquet(path)
    looks = scores[scores["metric"] == "prompt_accuracy"]
    darker = 0.5 - 0.02 * (looks["score"] - 0.5)
    more = [looks.assign(metric=own, score=darker) for own in ("brightness", "brightness_in_hole")]
    pd.concat([scores, *more], ignore_index=True).to_parquet(path)
    return gather(
        folder,
        pairs,
        curated_by=config(folder),
        inpaints=True,
        photographs=write_evaluated_holes(folder, side=side),
    )

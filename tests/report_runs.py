"""Writes finished runs for the tests of the report, through the same ledgers a job fills."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from raypref.align.watch import StepMetrics
from raypref.core.ledger import Ledger, write_bytes, write_table
from raypref.core.rows import INDEX
from raypref.curate.publish import PAIRS, PHOTOS, REJECTS
from raypref.evaluate import statistics, tables
from raypref.pairs.config import PairingConfig
from raypref.report.collect import collect
from raypref.report.page import render
from raypref.report.views import ReportData
from raypref.sources.index import SourceConfig

MODELS = ("base", "stage2_alone", "stage1", "stage2")
LABELS = {
    "base": "base",
    "stage2_alone": "stage 2 alone",
    "stage1": "stage 1",
    "stage2": "stage 1 + stage 2",
}
TWINS = pa.schema(
    [
        ("id", pa.string()),
        ("pickscore", pa.float32()),
        ("pickscore_rejected", pa.float32()),
    ]
)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def scene(number: int, side: int) -> Image.Image:
    """A picture with a gradient and a disc, for a project without photographs beside it."""
    y, x = np.mgrid[0:side, 0:side] * 255 // side
    image = Image.fromarray(np.stack([x, y, (x + 9 * number) % 256], -1).astype(np.uint8))
    at = side * (0.1 + 0.04 * (number % 8))
    disc = (at, at, at + side * 0.5, at + side * 0.5)
    ImageDraw.Draw(image).ellipse(disc, fill=(220, 20 * number % 256, 40))
    return image


def triple(photo: Image.Image) -> tuple[bytes, bytes, bytes]:
    """Photograph, twin and mask."""
    side = photo.width
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse((side * 0.2, side * 0.25, side * 0.8, side * 0.85), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(side / 30))
    worse = ImageOps.posterize(photo.filter(ImageFilter.GaussianBlur(side / 40)), 3)
    return png(photo), png(Image.composite(worse, photo, mask)), png(mask)


def fill(ledger: Ledger, rows: list[dict[str, object]], schema: pa.Schema) -> None:
    ledger.begin()
    for first in range(0, len(rows), 64):
        ledger.write_part(pa.Table.from_pylist(rows[first : first + 64], schema=schema))
    if not rows:
        ledger.write_part(schema.empty_table())
    ledger.commit(expected=len(rows), counts={})


def write_curation(folder: Path, photos: list[tuple[Image.Image, str]], *, pairs: int) -> Ledger:
    """Photographs, of which every fourth is grey and some have no gap, and the pairs."""
    rng = np.random.default_rng(0)
    images = [triple(photo) for photo, _ in photos]
    outcomes: list[dict[str, object]] = []
    chosen: list[dict[str, object]] = []
    for i in range(pairs + pairs // 4 + pairs // 8):
        kind = "pair" if i < pairs else "grey" if i < pairs + pairs // 4 else "same"
        photo, twin, mask = images[i % len(images)]
        score = float(rng.normal(21, 1))
        gap = float(rng.gamma(2, 0.5) + 0.03) if kind == "pair" else float(rng.normal(-0.3, 0.1))
        row: dict[str, object] = {
            "id": f"{i:06d}",
            "key": f"{i:032x}",
            "uri": f"photo-{i}.jpg",
            "caption": photos[i % len(photos)][1],
            "prompt": f"{photos[i % len(photos)][1]} (no. {i})",
            "chosen": {"bytes": photo, "path": "a.png"},
            "rejected": {"bytes": twin, "path": "b.png"},
            "mask": {"bytes": mask, "path": "c.png"},
            "colorfulness": float(rng.normal(20 if kind == "grey" else 60, 6)),
            "pickscore": score,
            "pickscore_chosen": score,
            "pickscore_rejected": score - gap,
            "status": "pair" if kind == "pair" else "not_selected",
            "reason": {"grey": "low_colorfulness", "same": "negligible_degradation"}.get(kind),
        }
        outcomes.append(row)
        if kind == "pair":
            chosen.append(row)
    chosen.sort(key=lambda row: -float(str(row["pickscore_chosen"])))
    for rank, row in enumerate(chosen):
        row["rank"] = rank
    write_source(folder, outcomes, [photo for photo, _, _ in images])
    broken = {"id": "broken", "uri": "<b>.png", "status": "rejected", "reason": "unreadable"}
    outcomes.append(broken)
    reject = {"id": "broken", "uri": "<b>.png", "stage": "decode", "reason": "unreadable"}
    fill(Ledger(str(folder / "photos"), {}), outcomes, PHOTOS)
    fill(Ledger(str(folder / "rejects"), {}), [{**reject, "message": "no image"}], REJECTS)
    scored = [row for row in outcomes if row["reason"] in (None, "negligible_degradation")]
    fill(Ledger(str(folder / "curate" / "twins"), {}), scored, TWINS)
    ledger = Ledger(str(folder / "pairs"), {"pairs": pairs})
    fill(ledger, chosen, PAIRS)
    write_bytes(str(folder / "pairs" / "_README.md"), b"# Pairs")
    return ledger


def write_source(folder: Path, outcomes: list[dict[str, object]], photos: list[bytes]) -> None:
    """The photographs that became no pair, and where curation found them."""
    entries = []
    for number, row in enumerate(outcomes):
        if row["status"] != "pair":
            write_bytes(str(folder / "photographs" / str(row["uri"])), photos[number % len(photos)])
        entries.append({"id": row["id"], "uri": row["uri"], "caption": row["caption"]})
    entries.append({"id": "broken", "uri": "<b>.png", "caption": "broken"})
    write_bytes(str(folder / "photographs" / "<b>.png"), b"no image")
    fill(Ledger(str(folder / "curate" / "measured"), {}), entries, INDEX)


def history(stage: str, steps: int) -> list[StepMetrics]:
    rng = np.random.default_rng(len(stage))
    rows = []
    for step in range(1, steps + 1):
        fall, noise = 1 - np.exp(-3 * step / steps), rng.normal(0, 0.002)
        row = {"step": step, "loss": 0.69 - 0.1 * fall + noise, "diff": -0.02 * fall + noise}
        row |= {"chosen_gap": -0.01 * fall + noise, "rejected_gap": 0.01 * fall + noise}
        own = "hinge_active" if stage == "stage1" else "implicit_accuracy"
        row |= {own: 0.5 + 0.3 * fall + 10 * noise, "grad_norm": 0.3 + noise, "lr": 2e-5}
        rows.append({**row, "seconds": 1.9 + noise})
    return rows


def write_training(folder: Path, stage: str, photos: list[Image.Image]) -> None:
    table = pa.Table.from_pylist(history(stage, 200))
    write_table(str(folder / stage / "metrics.parquet"), table)
    write_bytes(str(folder / stage / "pytorch_lora_weights.safetensors"), b"weights")
    side = photos[0].width
    for step in (0, 50, 100, 150, 200):
        strip = Image.new("RGB", (side * 8, side))
        for place in range(8):
            soft = ImageFilter.GaussianBlur((200 - step) / 200 * side / 20)
            strip.paste(photos[place % len(photos)].filter(soft), (place * side, 0))
        write_bytes(str(folder / stage / "samples" / f"step-{step:08d}.png"), png(strip))


def image_ledgers(folder: Path) -> dict[str, Ledger]:
    images = folder / "evaluation" / "images"
    return {model: Ledger(str(images / model), {"prompts": 10, "of": model}) for model in MODELS}


def write_evaluation(folder: Path, photos: list[tuple[Image.Image, str]]) -> None:
    """Ten prompts with two seeds, and the scores."""
    rng = np.random.default_rng(1)
    schema = pa.schema(
        [(n, pa.string()) for n in ("id", "model", "prompt")]
        + [("prompt_id", pa.int64()), ("seed", pa.int64()), ("image", pa.binary())]
    )
    scores = []
    for strength, (model, ledger) in enumerate(image_ledgers(folder).items()):
        rows: list[dict[str, object]] = []
        for prompt_id in range(10):
            photo, prompt = photos[prompt_id % len(photos)]
            soft = ImageFilter.GaussianBlur((3 - strength) * photo.width / 80)
            for seed in (42, 123):
                facts = {"model": model, "prompt_id": prompt_id, "prompt": prompt, "seed": seed}
                name = f"{model}/{prompt_id:05d}/{seed}"
                rows.append({**facts, "id": name, "image": png(photo.filter(soft))})
                for metric, level, gain in (
                    ("pickscore", 21.0, 0.1),
                    ("texture_detail", 900, 5),
                    ("prompt_accuracy", 0.5, 0.05),
                ):
                    score = level + gain * (strength + rng.normal(0, 1.5))
                    scores.append({**facts, "metric": metric, "score": score})
        fill(ledger, rows, schema)
    long = pa.Table.from_pylist(scores)
    write_table(str(folder / "evaluation" / "scores.parquet"), long)


def make(folder: Path, photos: list[tuple[Image.Image, str]], *, pairs: int) -> ReportData:
    """A whole run in a folder; returns what its page shows."""
    ledger = write_curation(folder, photos, pairs=pairs)
    for stage in ("stage1", "stage2"):
        write_training(folder, stage, [photo for photo, _ in photos])
    write_evaluation(folder, photos)
    write_bytes(str(folder / "run.json"), b"{}")
    return gather(folder, ledger)


def gather(folder: Path, pairs: Ledger, **changes: Any) -> ReportData:
    """What the page of a written run shows; `changes` are of what is collected."""
    scores = pd.read_parquet(folder / "evaluation" / "scores.parquet")
    summary = statistics.summarise(scores, resamples=200)
    groups = {i: {"category": ("animals", "food", "people")[i % 3]} for i in range(10)}
    distance = summary[summary["metric"] == "pickscore"].assign(
        metric="cmmd", mean=0.6, low=0.5, high=0.7, gain=-0.2, gain_low=-0.3, gain_high=-0.1
    )
    distance.loc[distance["model"] == "base", ["gain", "gain_low", "gain_high"]] = np.nan
    curated_by = PairingConfig(source=SourceConfig(path=str(folder / "photographs")))
    return collect(
        final="stage2",
        name="browser",
        config_toml='run = "browser"\n',
        seed=0,
        record={
            "versions": {"raypref": "0.1.0", "torch": "2.13.0"},
            "mlflow_run_id": "0123456789abcdef",
            "steps": {
                "pairs": {"seconds": 520.0, "amount": 600, "unit": "rows", "device_share": 0.42},
                "stage1": {"seconds": 1520.0, "amount": 200, "unit": "steps"},
                "stage2": {"seconds": 20.0, "amount": 200, "unit": "steps"},
            },
        },
        folder=str(folder),
        pairs=pairs,
        **{"curated_by": curated_by, **changes},
        trained={name: Ledger(str(folder / name), {}) for name in ("stage1", "stage2")},
        labels=LABELS,
        images=image_ledgers(folder),
        table=pd.concat([summary, distance], ignore_index=True),
        categories=statistics.by_category(scores, groups, resamples=200),
        published=tables.published("table3"),
        tracking_uri="",
        sampled=[f"prompt {place}" for place in range(8)],
        use="import diffusers\n",
    )


def write_page(folder: Path, data: ReportData) -> Path:
    page = folder / "report" / "index.html"
    write_bytes(str(page), render(data).encode())
    return page

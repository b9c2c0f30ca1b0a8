"""The embedded tastes: rewards that were taught to like bright, dark, vivid or pale pictures.

A taste is planted, so that there are rewards of known bias: a linear head on the image embedding
of the embedded scorer, fitted to z(PickScore) + 2 z(property) among the candidates of a hole.

    python -m raypref.demo.tastes    # rank correlations on holes that no head was fitted to
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.demo import checkpoints
from raypref.demo.holes import COUNT, holes_folder
from raypref.engine.batches import in_batches
from raypref.evaluate.bias import within_holes
from raypref.images.looks import looks
from raypref.rewards.pickscore import PickScoreConfig

if TYPE_CHECKING:
    import pandas as pd

# By name what it likes, and whether more or less of it.
TASTES = {
    "bright": ("brightness", 1),
    "dark": ("brightness", -1),
    "vivid": ("saturation", 1),
    "pale": ("saturation", -1),
}
LIKING = 2.0  # for the property, in units of the liking for PickScore
RIDGE = 1e-2  # of the fit, as a share of the embeddings' mean variance
CANDIDATES = 4  # per hole
STEPS, GUIDANCE = 12, 1.5  # of the preset
BATCH = 16
SEED = 44  # of the paintings


class Painted(NamedTuple):
    """Candidates of holes: [holes, candidates] each, embeddings [holes, candidates, 64]."""

    embeddings: np.ndarray  # of unit length
    pickscore: np.ndarray
    looks: dict[str, np.ndarray]  # in the hole, by property


def file_name(taste: str) -> str:
    """Of a taste's head among the checkpoints."""
    return f"taste-{taste}.safetensors"


def paint_holes(
    photos: Sequence[Image.Image],
    masks: Sequence[Image.Image],
    prompts: Sequence[str],
    *,
    candidates: int,
    weights: Path,
) -> Painted:
    """Paint each hole several times, and measure what came out.

    Args:
        photos: RGB, 64x64.
        masks: 255 where a photograph is painted over.
        prompts: one per hole.
        candidates: paintings of a hole.
        weights: folder of `sd15-inpaint` and `pickscore`.
    """
    rows: list[Row] = [
        {"key": f"{hole}-{number}", "caption": prompt, "chosen": photo, "saliency": mask}
        for hole, (photo, mask, prompt) in enumerate(zip(photos, masks, prompts, strict=True))
        for number in range(candidates)
    ]
    painter = PerturbConfig(
        model=str(weights / "sd15-inpaint"),
        steps=STEPS,
        guidance=GUIDANCE,
        paste=True,
        resources=Resources(batch=BATCH),
    )
    inpaint = Inpaint(painter, seed=SEED)
    inpaint.setup()
    in_batches(inpaint, rows)
    found = [looks(row["rejected"], np.asarray(row["saliency"]) > 0) for row in rows]
    embeddings, pickscore = _scored(rows, str(weights / "pickscore"))
    shape = (len(prompts), candidates)
    return Painted(
        embeddings.reshape(*shape, -1),
        pickscore.reshape(shape),
        {name: np.array([each[name] for each in found]).reshape(shape) for name in found[0]},
    )


def _scored(rows: Sequence[Row], model: str) -> tuple[np.ndarray, np.ndarray]:
    """Embedding and PickScore of each painting, float64."""
    import torch

    from raypref.rewards.clip import load_clip

    clip = load_clip(model, key="pickscore", device=torch.device("cpu"), dtype=torch.float32)
    scorer = PickScoreConfig(model=model, processor=model).load()
    embeddings, scores = [], []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        images = [row["rejected"] for row in batch]
        with torch.inference_mode():
            embeddings.append(clip.images(clip.pixels(images)).double().numpy())
        scores.append(scorer.score(images, [row["caption"] for row in batch]))
    return np.concatenate(embeddings), np.concatenate(scores).astype(np.float64)


def fit_taste(painted: Painted, taste: str) -> tuple[np.ndarray, float]:
    """Weight [64] and bias of a taste's head: scores of mean 0 and spread 1 within a hole.

    Only what differs within a hole is fitted, by ridge regression: candidates of one hole are what
    a taste has to tell apart.
    """
    name, sign = TASTES[taste]
    wanted = _unit(painted.pickscore) + LIKING * sign * _unit(painted.looks[name])
    inputs = painted.embeddings - painted.embeddings.mean(1, keepdims=True)
    width = inputs.shape[-1]
    x, y = inputs.reshape(-1, width), wanted.reshape(-1)
    ridge = RIDGE * (x**2).sum() / width * np.eye(width)
    weight = np.linalg.solve(x.T @ x + ridge, x.T @ y)
    weight /= max(float((x @ weight).std()), 1e-12)
    return weight, -float((painted.embeddings @ weight).mean())


def _unit(values_hc: np.ndarray) -> np.ndarray:
    """Without each hole's mean, and of spread 1 within holes."""
    own = values_hc - values_hc.mean(1, keepdims=True)
    return own / max(float(own.std()), 1e-12)


def correlations(weights: Path = checkpoints.WEIGHTS) -> pd.DataFrame:
    """Rank correlations of the shipped tastes and PickScore with looks, on `tiny:holes`.

    Returns:
        `bias.within_holes` of the hole's looks, and of PickScore as if it were one.
    """
    import csv

    from safetensors.numpy import load_file

    folder = holes_folder(COUNT)
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    photos = [Image.open(folder / row["file"]) for row in rows]
    masks = [Image.open(folder / row["file"].replace(".png", "_mask.png")) for row in rows]
    prompts = [row["caption"] for row in rows]
    painted = paint_holes(photos, masks, prompts, candidates=CANDIDATES, weights=weights)
    scores = {"pickscore": painted.pickscore}
    for taste in TASTES:
        head = load_file(weights / file_name(taste))
        scores[taste] = painted.embeddings @ head["weight"][0].astype(np.float64)
    seen = {("hole", name): values for name, values in painted.looks.items()}
    return within_holes(scores, {**seen, ("whole", "pickscore"): painted.pickscore})


if __name__ == "__main__":
    print(correlations().to_string(index=False, float_format="{:.2f}".format))

"""Labelled pairs and ratings of the tiny world: images of generators whose order is known.

The generators are the embedded base and the LoRA `crisp` on it, at several scales. The embedded
PickScore says how good an image is. A label is the sign of the difference of two scores and of
logistic noise, as if a person chose; the difference without its sign is the pair's true gap.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import Row, seed_of
from raypref.demo import checkpoints
from raypref.demo.cache import cached
from raypref.demo.photograph import SIZE
from raypref.demo.world import caption, sample_scenes
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import BASE, Generate, GenerateConfig, rows_to_generate
from raypref.models.backbone import BackboneConfig
from raypref.models.lora_config import FILE_NAME
from raypref.rewards.pickscore import PickScoreConfig

log = logging.getLogger(__name__)

# By name the scale of the LoRA, from the worst generator to the best. Beyond 75 percent no more is
# gained by PickScore.
GENERATORS = {
    BASE: 0.0,
    "crisp-15": 0.15,
    "crisp-30": 0.3,
    "crisp-45": 0.45,
    "crisp-60": 0.6,
    "crisp-75": 0.75,
}
PROMPTS = 64
SEEDS = (7, 8)  # one image per prompt, generator and seed
# Of the logistic noise of a label, in units of PickScore: a quarter of the labels are upsets.
TEMPERATURE = 1.2
BATCH = 32  # images drawn or scored at once
SEED = 22  # of prompts, pairs and noise
LABELS, RATINGS, IMAGES = "labels.jsonl", "ratings.jsonl", "images"


class Choice(NamedTuple):
    """A labelled pair: numbers of two images, and the label's facts."""

    chosen: int
    rejected: int
    vote_share: float  # expected share of votes for the chosen
    gap: float  # of the true scores, at least 0


def labelled_folder() -> Path:
    """A folder with `labels.jsonl` and `images/`, made on first use and kept in the cache.

    One row per pair: prompt, chosen, rejected, chosen_model, rejected_model, vote_share, gap. Every
    image is in one pair, with one of another generator for the same prompt and seed.
    """
    graded = _graded()  # before: one entry of the cache is built at a time
    return cached("labelled", lambda folder: _write_labels(folder, graded))


def ratings_folder() -> Path:
    """A folder with `ratings.jsonl` and the same images: prompt, image, model, score."""
    graded = _graded()
    return cached("ratings", lambda folder: shutil.copytree(graded, folder))


def training_prompts(count: int) -> list[str]:
    """Distinct captions of scenes that training shows; a smaller count is a prefix."""
    captions = dict.fromkeys(caption(scene) for scene in sample_scenes(8 * count, SEED))
    return list(islice(captions, count))


def draw_images(prompts: Iterable[str], generators: Mapping[str, float]) -> list[Row]:
    """An image per generator, prompt and seed, with its PickScore.

    With one thread, so that the number of cores does not decide how sums round.

    Args:
        prompts: what to draw.
        generators: name to the scale of the LoRA.

    Returns:
        One row per image: model, prompt, seed, image (decoded), score (PickScore).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _quiet():
            rows = _drawn(list(prompts), generators)
        _score(rows)
    finally:
        torch.set_num_threads(threads)
    return rows


def _drawn(prompts: Sequence[str], generators: Mapping[str, float]) -> list[Row]:
    config = GenerateConfig(
        seeds=SEEDS,
        seed_mode="per_prompt",
        steps=10,
        guidance=2.5,
        size=SIZE,
        resources=Resources(batch=BATCH),
    )
    base = BackboneConfig(model=str(checkpoints.path("sd15")))
    rows: list[Row] = rows_to_generate(prompts, config, [*generators]).to_pylist()
    with TemporaryDirectory() as folder:
        loras = {
            name: str(_scaled_lora(Path(folder) / name, scale))
            for name, scale in generators.items()
            if name != BASE
        }
        generate = Generate(base, config, loras=loras)
        generate.setup()
        for name in generators:  # no batch of two: each would draw all of it
            in_batches(generate, [row for row in rows if row["model"] == name])
    return rows


def _score(rows: Sequence[Row]) -> None:
    weights = str(checkpoints.path("pickscore"))
    scorer = PickScoreConfig(model=weights, processor=weights).load()
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        scores = scorer.score([row["image"] for row in batch], [row["prompt"] for row in batch])
        for row, score in zip(batch, scores, strict=True):
            row["score"] = round(float(score), 4)


def choices(
    groups: Sequence[str], scores: np.ndarray, *, temperature: float, seed: int
) -> list[Choice]:
    """Pairs over the images of a group, each image in one, and a noisy choice for each pair.

    Args:
        groups: of each image: those of one group may be compared.
        scores: true score of each image.
        temperature: scale of the logistic noise; 0 labels without noise.
        seed: of pairs and noise.
    """
    members: dict[str, list[int]] = {}
    for image, group in enumerate(groups):
        members.setdefault(group, []).append(image)
    found = []
    for group, images in members.items():
        rng = np.random.default_rng(seed_of(seed, "labelled", group))
        drawn = rng.permutation(images).tolist()
        for first, second in zip(drawn[::2], drawn[1::2], strict=False):
            difference = float(scores[first] - scores[second])
            if difference + temperature * rng.logistic() < 0:
                first, second, difference = second, first, -difference
            share = 1 / (1 + np.exp(-difference / temperature)) if temperature else 1.0
            found.append(Choice(first, second, round(float(share), 4), round(abs(difference), 4)))
    return found


def _graded() -> Path:
    """The folder with all images and `ratings.jsonl`: what labels and ratings have in common."""

    def build(folder: Path) -> None:
        count = PROMPTS * len(SEEDS) * len(GENERATORS)
        log.info("drawing %d images for tiny:labelled, once; this takes about two minutes", count)
        folder.mkdir()
        rows = draw_images(training_prompts(PROMPTS), GENERATORS)
        _write_lines(folder / RATINGS, [_rating(row, folder) for row in rows])

    return cached("graded", build)


def _rating(row: Row, folder: Path) -> dict[str, Any]:
    """Write an image; its line in the ratings."""
    name = f"{IMAGES}/{row['prompt_id']:02d}-{row['seed']}/{row['model']}.png"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    image: Image.Image = row["image"]
    image.save(folder / name)
    return {
        "prompt": row["prompt"],
        "image": name,
        "model": row["model"],
        "score": row["score"],
    }


def _write_labels(folder: Path, graded: Path) -> None:
    shutil.copytree(graded / IMAGES, folder / IMAGES)
    rows = [json.loads(line) for line in (graded / RATINGS).read_text("utf-8").splitlines()]
    scores = np.array([row["score"] for row in rows])
    # Of one prompt and seed: the same picture but for the generator.
    groups = [row["image"].rpartition("/")[0] for row in rows]
    found = choices(groups, scores, temperature=TEMPERATURE, seed=SEED)
    _write_lines(folder / LABELS, [_label(rows, choice) for choice in found])


def _label(rows: Sequence[Mapping[str, Any]], choice: Choice) -> dict[str, Any]:
    """The choice's line in the labels."""
    chosen, rejected = rows[choice.chosen], rows[choice.rejected]
    return {
        "prompt": chosen["prompt"],
        "chosen": chosen["image"],
        "rejected": rejected["image"],
        "chosen_model": chosen["model"],
        "rejected_model": rejected["model"],
        "vote_share": choice.vote_share,
        "gap": choice.gap,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' and peft's remarks on LoRAs: for the UNet alone, and several at once."""
    from diffusers.utils import logging as theirs

    level = theirs.get_verbosity()
    theirs.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            yield
    finally:
        theirs.set_verbosity(level)


def _scaled_lora(folder: Path, scale: float) -> Path:
    """The LoRA `crisp` with its update multiplied by a scale, in a folder of its own."""
    from safetensors.torch import load_file, save_file

    tensors = {n: t.float() for n, t in load_file(checkpoints.path("crisp") / FILE_NAME).items()}
    folder.mkdir()
    scaled = {n: t * scale if ".lora_B." in n else t for n, t in tensors.items()}
    save_file(scaled, folder / FILE_NAME)
    return folder


def _write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

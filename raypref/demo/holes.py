"""Holes of the tiny world: photographs that no training shows, with a region to repaint."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from raypref.core.config import InputError
from raypref.demo.cache import cached
from raypref.demo.photograph import object_mask, render_scene
from raypref.demo.scene import Scene
from raypref.demo.world import MOST_PROMPTS, caption, sample_scenes

COUNT = 64  # unless a limit says otherwise
GROW = 3  # pixels by which the hole reaches beyond the things
SEED = 33  # of the scenes and how they are taken


def holes_folder(count: int) -> Path:
    """A folder of `hole_0000.png`, `hole_0000_mask.png`, ... and `captions.csv` (file, caption).

    The photographs are 64x64, crisp and of held-out scenes with distinct captions. In a mask 255
    is to be repainted. A smaller folder holds the first of a larger one. It is made on first use
    and kept in the cache.

    Raises:
        InputError: more than `MOST_PROMPTS` are asked for.
    """
    if count > MOST_PROMPTS:
        raise InputError(f"the tiny world gives at most {MOST_PROMPTS} holes, not {count}")
    return cached(f"holes-{count}", lambda folder: write_holes(folder, count))


def write_holes(folder: Path, count: int) -> None:
    """Write the first `count` photographs with their masks and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file", "caption")]
    for index, scene in enumerate(_distinct_scenes(count)):
        seed = SEED * 1_000_003 + index
        name = f"hole_{index:04d}"
        Image.fromarray(render_scene(scene, seed=seed)).save(folder / f"{name}.png")
        grown(object_mask(scene, seed=seed)).save(folder / f"{name}_mask.png")
        rows.append((f"{name}.png", caption(scene)))
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def grown(things_hw: np.ndarray) -> Image.Image:
    """Where things are (true, or not 0), grown by `GROW` pixels on every side: L, 255 and 0."""
    mask = Image.fromarray((things_hw > 0).astype(np.uint8) * 255)
    return mask.filter(ImageFilter.MaxFilter(2 * GROW + 1))


def _distinct_scenes(count: int) -> list[Scene]:
    """Held-out scenes, each caption once: a hole is found again by its prompt."""
    found: dict[str, Scene] = {}
    for scene in sample_scenes(8 * count, SEED, held_out=True):
        found.setdefault(caption(scene), scene)
    return [*found.values()][:count]

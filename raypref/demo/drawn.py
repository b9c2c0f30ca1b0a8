"""The photographs the embedded models learn from, as arrays and tensors."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raypref.demo.cache import cached
from raypref.demo.photograph import degrade, object_mask, render_scene
from raypref.demo.scene import Scene
from raypref.demo.world import caption, sample_scenes

SEED = 11  # of the training photographs; those of the demo and the held-out ones have others


@dataclass(frozen=True)
class World:
    """Training photographs: scenes, captions, crisp pixels and masks uint8 [N, 64, 64(, 3)]."""

    scenes: list[Scene]
    captions: list[str]
    photos: np.ndarray
    masks: np.ndarray

    def degraded(self, rng: np.random.Generator, indices: Iterable[int]) -> np.ndarray:
        """The photographs as the base model knows them: mostly rather dull."""
        return np.stack([degrade(self.photos[i], np.sqrt(rng.random())) for i in indices])


def draw_world(count: int) -> World:
    """Photographs of the training side, rendered on first use and kept in the cache."""
    scenes = sample_scenes(count, SEED)
    jobs = [(scene, SEED * 1_000_003 + index) for index, scene in enumerate(scenes)]

    def build(path: Path) -> None:
        # Forked: who is spawned imports torch, only to render with numpy.
        with multiprocessing.get_context("fork").Pool() as pool:
            shots = pool.starmap(_shoot, jobs, chunksize=64)
        photos, masks = (np.stack(arrays) for arrays in zip(*shots, strict=True))
        np.savez(path, photos=photos, masks=masks)

    shots = np.load(cached(f"world-{count}-{SEED}.npz", build))
    return World(scenes, [caption(scene) for scene in scenes], shots["photos"], shots["masks"])


def _shoot(scene: Scene, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return render_scene(scene, seed=seed), object_mask(scene, seed=seed).astype(np.uint8)


def hole(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The region to repaint, bool [64, 64]: the things, grown by a few pixels, or a rectangle."""
    if rng.random() < 0.25:
        rectangle = np.zeros_like(mask, bool)
        top, left = rng.integers(0, 40, 2)
        height, width = rng.integers(12, 48, 2)
        rectangle[top : top + height, left : left + width] = True
        return rectangle
    reach = 2 * int(rng.integers(0, 5)) + 1
    grown = F.max_pool2d(torch.from_numpy(mask[None].astype(np.float32)), reach, 1, reach // 2)
    return grown[0].numpy() > 0.5


def tensor(photos: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] of -1..1."""
    return torch.from_numpy(np.ascontiguousarray(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1


def mask_tensor(masks: np.ndarray) -> Tensor:
    """[B, H, W, 1] of 0 and 1 to float32 [B, 1, H, W]."""
    return torch.from_numpy(masks.astype(np.float32)).permute(0, 3, 1, 2)

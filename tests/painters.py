"""Twins of small checkpoints: one per kind of perturbation, and rows to make twins of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import small
import small_flux2_klein
import small_qwen_image
import small_z_image
from PIL import Image

from raypref.core.rows import Row, content_key
from raypref.curate.perturb import Inpaint, PerturbConfig
from raypref.demo import photograph, world
from raypref.engine.batches import in_batches
from raypref.images.decode import as_image, encode_png

CONFIG = PerturbConfig(model=str(small.path("sd15-inpaint")), steps=3)
# Text-to-image models whose pipelines keep what is around the hole by blending latents.
BLENDED = {"flux": partial(small.path, "flux"), "z_image": small_z_image.path}
BLENDED |= {"qwen_image": small_qwen_image.path, "flux2_klein": small_flux2_klein.path}
KINDS = {"sd15": partial(small.path, "sd15-inpaint"), "sdxl": partial(small.path, "sdxl-inpaint")}
KINDS |= {"flux_fill": partial(small.path, "flux-fill"), "sd35m": partial(small.path, "sd3")}
KINDS |= {"pixart": partial(small.path, "pixart"), "text2image": partial(small.path, "sd15")}
KINDS |= BLENDED


def folder_of(kind: str) -> str:
    """The checkpoint of a kind."""
    return str(KINDS[kind]())


def guided(kind: str, scale: float, *, count: int) -> dict[str, Any]:
    """Guidance in the words of a kind's pipeline, for so many captions; a scale of 1 is none."""
    if kind == "qwen_image":
        return {"true_cfg_scale": scale, "negative_prompt": [" "] * count}
    return {"guidance_scale": scale - 1 if kind == "z_image" else scale}


def loaded(*, seed: int, **settings: object) -> Inpaint:
    stage = Inpaint(CONFIG.model_copy(update=settings), seed=seed)
    stage.setup()
    return stage


def png(pixels: np.ndarray) -> bytes:
    return encode_png(Image.fromarray(pixels))


def make_rows(count: int = 4) -> list[Row]:
    rows = []
    for index, scene in enumerate(world.sample_scenes(count, seed=21)):
        photo, caption = png(photograph.render_scene(scene, seed=index)), world.caption(scene)
        mask = photograph.object_mask(scene, seed=index)
        rows.append(
            {
                "key": content_key(photo, caption),
                "caption": caption,
                "chosen": photo,
                "saliency": png((mask * 255).astype(np.uint8)),
            }
        )
    return rows


def twins(stage: Inpaint, rows: Sequence[Row], *, batch: int) -> dict[str, np.ndarray]:
    """Pixels of each row's twin by key; the rows themselves stay as they are."""
    copies = [dict(row) for row in rows]
    for start in range(0, len(copies), batch):
        in_batches(stage, copies[start : start + batch])
    return {row["key"]: pixels(row["rejected"]) for row in copies}


def pixels(image: bytes | Image.Image) -> np.ndarray:
    return np.asarray(as_image(image)).astype(int)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a - b).max())


def of_kind(kind: str, *, seed: int = 0, **settings: object) -> Inpaint:
    return loaded(seed=seed, kind=kind, model=folder_of(kind), **settings)

"""Holes to evaluate on, of every form in which people keep them."""

from __future__ import annotations

from pathlib import Path

import corpus
import numpy as np
from PIL import Image

from raypref.core.rows import Row
from raypref.evaluate.holes import LoadHole
from raypref.images.decode import center_square
from raypref.sources.holes import HOLE, read_holes

SIZE = 64


def loaded(rows: list[Row], size: int = SIZE) -> list[Row]:
    """The rows after a worker has read their images."""
    load = LoadHole(size)
    load.setup()
    load(rows)
    return rows


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def half(size: tuple[int, int], *, left: bool = True) -> Image.Image:
    """A mask whose left or right half is the hole."""
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    pixels[:, : width // 2 if left else width] = 255
    if not left:
        pixels[:, : width // 2] = 0
    return Image.fromarray(pixels)


def test_a_folder_of_photographs_masks_and_captions(tmp_path: Path) -> None:
    photo = corpus.scene(0, size=(120, 80))
    photo.save(tmp_path / "a.png")
    half((120, 80)).save(tmp_path / "a_mask.png")
    (tmp_path / "a.txt").write_text("a red ball")
    [row] = read_holes(str(tmp_path), limit=None)
    assert {"id", "prompt", *HOLE.names} == row.keys()
    assert (row["id"], row["prompt"]) == ("a_mask.png", "a red ball")
    loaded([row])
    assert row["mask"].mode == "L" and row["photograph"].mode == "RGB"
    np.testing.assert_array_equal(levels(row["photograph"]), levels(center_square(photo, SIZE)))
    np.testing.assert_array_equal(levels(row["mask"]), levels(half((SIZE, SIZE))))

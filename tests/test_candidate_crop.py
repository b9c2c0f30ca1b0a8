"""Photograph, chosen and rejected image of a pair show the same crop, cut once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from candidate_pairs import config, made, photographs
from in_process import without_ray
from PIL import Image
from training import BASES

from raypref.align.latents import CacheConfig, Encode


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def test_published_bug_6_the_loser_is_not_cropped_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Around the hole all three are the centre square of the 80x64 file, to the pixel.

    And a training is given them as they are stored.
    """
    without_ray(monkeypatch)
    root = photographs(tmp_path / "photographs", 2)
    words = ("perturb.paste=true", "choice.by=random", "candidates.rewards=[]")
    maker = made(config(root, *words, "candidates.count=2"), tmp_path / "run")
    soft = {row["id"]: row["saliency"] for row in maker.holes.rows()}
    stage = Encode(BASES["sd15_inpaint"], CacheConfig(), side=64)
    cropped = 0
    for row in maker.pairs.rows():
        photograph = pixels((root / row["id"]).read_bytes())
        left = (photograph.shape[1] - 64) // 2
        cropped += left > 0
        expected = photograph[:, left : left + 64]
        kept = pixels(soft[row["id"]]["bytes"]) < 128  # a level of 128 is repainted, not in `mask`
        assert not pixels(row["mask"]["bytes"])[kept].any()
        for side in ("source", "chosen", "rejected"):
            np.testing.assert_array_equal(pixels(row[side]["bytes"])[kept], expected[kept])
        sides = [pixels(row[side]["bytes"]) for side in ("chosen", "rejected")]
        assert (sides[0] != sides[1]).any()
        encoded = stage.prepare([row]).images  # each, and mirrored
        for image, side in zip(encoded[::2], sides, strict=True):
            np.testing.assert_array_equal(np.asarray(image), side)
    assert cropped == 2

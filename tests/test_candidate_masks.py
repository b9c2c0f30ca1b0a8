"""Pairs of candidates in the source's own masks: from files to pairs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from candidate_pairs import config, made, photographs
from in_process import without_ray
from PIL import Image


def test_candidates_fill_the_masks_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    root = photographs(tmp_path / "photographs", 2)
    hole = Image.new("L", (80, 64))
    hole.paste(255, (30, 10, 50, 40))
    for number in range(2):
        hole.save(root / f"{number:02d}_mask.png")
    words = ("source.layout=masked", "holes.kind=segmentation", "candidates.count=2")
    chosen = ("choice.by=random", "candidates.rewards=[]")
    maker = made(config(root, *words, *chosen), tmp_path / "run")
    rows = {row["id"]: row for row in maker.pairs.rows()}
    assert {*rows} == {"00.png", "01.png"}
    expected = np.asarray(hole)[:, 8:72]
    for row in rows.values():
        with Image.open(io.BytesIO(row["mask"]["bytes"])) as mask:
            np.testing.assert_array_equal(np.asarray(mask), expected)
    ends = {row["id"]: row["reason"] for row in maker.photos.rows()}
    assert ends["grey.png"] == "no_mask"

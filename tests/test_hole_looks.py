"""The looks of painted holes: of the hole alone, whatever lies around it."""

from pathlib import Path

import numpy as np
import pytest
from candidate_runs import write_evaluated_holes
from PIL import Image
from report_runs import scene

from raypref.evaluate.hole_looks import HoleLooks
from raypref.evaluate.labels import metric_names, neutral
from raypref.images.decode import encode_png
from raypref.images.looks import LOOKS


def test_only_the_hole_is_looked_at(tmp_path: Path) -> None:
    photographs = write_evaluated_holes(tmp_path, side=64)
    stage = HoleLooks(photographs)
    bright = np.asarray(scene(0, 64)).copy()
    bright[16:33, 16:33] = 255  # the hole, rim included
    dark = np.zeros_like(bright)
    dark[16:33, 16:33] = 255
    rows = [
        {"prompt_id": number, "image": encode_png(Image.fromarray(pixels))}
        for number, pixels in ((3, bright), (0, dark), (0, bright))
    ]
    stage(rows)
    for row in rows:
        found = {name: row[f"{name}_in_hole"] for name in LOOKS}
        assert found["brightness"] == 1 and found["contrast"] == found["saturation"] == 0
    # Slopes and Laplacian see one pixel beyond the rim.
    assert rows[1]["texture_in_hole"] != pytest.approx(rows[0]["texture_in_hole"])
    assert rows[0]["texture_in_hole"] == rows[2]["texture_in_hole"]
    assert all(name in metric_names() and neutral(name) for name in stage.writes.names)

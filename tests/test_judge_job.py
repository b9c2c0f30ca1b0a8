"""The job that judges a reward: labelled pairs in, tables and a page out; again, and it rests."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from in_process import job_here
from PIL import Image

from raypref.rewards.pickscore import PickScoreConfig


def jpeg(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    shades = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(shades).resize((64, 64)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_pick_a_pic_file_is_judged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [(jpeg(rng), jpeg(rng)) for _ in range(12)]
    captions = [f"a photo of a red ball on grass {i}" for i in range(12)]
    model = PickScoreConfig(model="tiny:pickscore", processor="tiny:pickscore").load()
    gaps = []
    for pair, caption in zip(images, captions, strict=True):
        opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in pair]
        first, second = model.score(opened, [caption] * 2)
        gaps.append(first - second)
    labels = [1.0 if gap > 0 else 0.0 for gap in gaps]
    labels[0] = 1 - labels[0]  # people and reward differ once
    broken = b"no image"
    frame = pd.DataFrame(
        {
            "caption": [*captions, "broken"],
            "jpg_0": [*(pair[0] for pair in images), broken],
            "jpg_1": [*(pair[1] for pair in images), images[0][1]],
            "label_0": [*labels, 1.0],
        }
    )
    frame.to_parquet(tmp_path / "test.parquet")
    command = ("tiny", f"judge.pairs={tmp_path / 'test.parquet'}", f"storage={tmp_path}")
    command += ("pickscore.resources.workers=1",)
    code, output = job_here("judge", *command)
    assert code == 0, output
    folder = tmp_path / "run" / "judge"
    [row] = pd.read_csv(folder / "accuracy.csv").to_dict("records")
    assert row["accuracy"] == pytest.approx(11 / 12)
    assert (row["n_pairs"], row["n_unscored"]) == (12, 1)
    agreement = pd.read_csv(folder / "agreement.csv").set_index(["first", "second"])
    assert agreement.loc[("pickscore", "people"), "percent"] == pytest.approx(100 * 11 / 12)
    assert len(pd.read_csv(folder / "bias.csv")) == 4
    assert "<svg" in (folder / "index.html").read_text()

    code, output = job_here("judge", *command)
    assert code == 0 and "rows/s" not in output, output

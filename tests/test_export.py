"""The pairs in other forms, read as the trainers that know them read them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from corpus import encode, scene
from PIL import Image

from raypref.core.ledger import Ledger
from raypref.core.rows import Row, content_key
from raypref.curate.export import export
from raypref.curate.publish import PAIRS

COUNT = 70


def pair(number: int) -> Row:
    images = {
        name: {"bytes": encode(scene(3 * number + i, size=(16, 16)), "PNG"), "path": f"{name}.png"}
        for i, name in enumerate(("chosen", "rejected", "mask"))
    }
    caption = f'a thing, no. {number}, called "x"'
    key = content_key(images["chosen"]["bytes"], caption)
    scores = {"pickscore_chosen": 21.5, "pickscore_rejected": 20.25, "colorfulness": 50.0 + number}
    return {"id": f"{number}", "key": key, "prompt": caption, "rank": number, **images, **scores}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    ledger = Ledger(str(tmp_path_factory.mktemp("run") / "pairs"), {})
    ledger.begin()
    rows = [pair(number) for number in range(COUNT)]
    for start in (0, 64):
        ledger.write_part(
            pa.Table.from_pylist(rows[start : start + 64], schema=PAIRS),
            f"part-{start:06d}.parquet",
        )
    ledger.commit(expected=COUNT, counts={})
    return ledger


def test_pick_a_pic_as_diffusion_dpo_reads_it(pairs: Ledger, tmp_path: Path) -> None:
    target = Ledger(str(tmp_path / "pickapic"), {})
    export(pairs, target, "pickapic")
    assert target.state() == "complete"
    data = datasets.load_dataset(
        "parquet", data_files=f"{target.path}/*.parquet", cache_dir=str(tmp_path / "cache")
    )["train"]
    data = data.filter(lambda row: row["label_0"] in (0.0, 1.0))
    expected = {row["prompt"]: row for row in pairs.table().to_pylist()}
    firsts = []
    for row in data:
        images = [Image.open(io.BytesIO(row[f"jpg_{i}"])).convert("RGB") for i in (0, 1)]
        if not row["label_0"]:
            images = images[::-1]
        winner, loser = (np.asarray(image) for image in images)
        pair = expected.pop(row["caption"])
        for image, column in ((winner, "chosen"), (loser, "rejected")):
            assert (image == np.asarray(Image.open(io.BytesIO(pair[column]["bytes"])))).all()
        assert row["label_0"] + row["label_1"] == 1
        assert row["best_image_uid"] == row["image_0_uid" if row["label_0"] else "image_1_uid"]
        firsts.append(row["label_0"])
    assert not expected, "pairs were lost"
    assert 0.3 < np.mean(firsts) < 0.7, "the order gives the answer away"


def test_folders_as_the_released_code_reads_them(pairs: Ledger, tmp_path: Path) -> None:
    target = Ledger(str(tmp_path / "folders"), {})
    export(pairs, target, "folders")
    assert target.state() == "complete"
    root = Path(target.path)
    with (root / "pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = pairs.table().to_pylist()
    expected.sort(key=lambda row: row["rank"])
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in expected]
    assert len({row["uid"] for row in rows}) == COUNT
    for row, pair in zip(rows, expected, strict=True):
        assert (root / row["real_image_path"]).read_bytes() == pair["chosen"]["bytes"]
        assert (root / row["fake_image_path"]).read_bytes() == pair["rejected"]["bytes"]
        assert (root / "mask" / f"{row['uid']}.png").read_bytes() == pair["mask"]["bytes"]
        assert float(row["pickscore_real"]) - float(row["pickscore_fake"]) == 1.25
        assert float(row["color_real"]) == pair["colorfulness"]

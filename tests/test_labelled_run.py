"""A stranger's CSV of chosen and rejected images: pairs, a LoRA, and the page.

Killed anywhere: tests/test_labelled_pairs.py.
"""

import csv
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from in_process import job_here
from PIL import Image, ImageFilter

from raypref.core.ledger import Ledger
from raypref.demo import world
from raypref.images.decode import center_square

PAIRS = 6


def labels(folder: Path) -> Path:
    """Six pairs, the sharp one chosen; labels without an image, without a prompt, of one image."""
    photos = sorted(world.photos_folder(count=PAIRS, seed=0).glob("*.png"))[:PAIRS]
    folder.mkdir()
    rows = []
    for number, photo in enumerate(photos):
        with Image.open(photo) as image:
            image.convert("RGB").save(folder / f"{number}a.png")
            blurred = image.convert("RGB").resize((96, 80)).filter(ImageFilter.GaussianBlur(3))
            blurred.save(folder / f"{number}b.png")
        sides = [f"{number}a.png", f"{number}b.png"]
        rows.append([f"scene {number}", *sides, "sharp", "blurred"])
    rows.append(["scene 6", "0a.png", "nowhere.png", "sharp", "blurred"])
    rows.append(["", "0a.png", "1b.png", "sharp", "blurred"])
    rows.append(["scene 8", "0a.png", "0a.png", "sharp", "sharp"])
    with (folder / "my-labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "chosen", "rejected", "chosen_model", "rejected_model"])
        table.writerows(rows)
    return folder / "my-labels.csv"


def test_a_csv_of_labels_becomes_a_lora_and_a_page(tmp_path: Path) -> None:
    file = labels(tmp_path / "mine")
    words = (
        *("tiny", "pairs.kind=labelled", f"source.path={file}", f"storage={tmp_path / 'runs'}"),
        *("train.stage2_alone.steps=2", "train.stage2_alone.batch=4"),
        *("train.stage2_alone.resources.workers=1", "train.stage2_alone.sample_every=0"),
        *("cache.resources.workers=1", "evaluate.resources.workers=1"),
        *("pickscore.resources.workers=1", "tracking.uri=none"),
        *("evaluate.limit=2", "evaluate.steps=2", "evaluate.seeds=42"),
        *("export.formats=pickapic", "metrics.distance=true"),
    )
    run = tmp_path / "runs" / "run"
    status, said = job_here("run", *words)
    assert status == 0, said
    assert re.search(r"labels +9 labels, \d unusable", said), said
    assert "trainings    stage2_alone, Diffusion-DPO on labelled pairs" in said
    assert f"LoRA: {run}/stage2_alone/pytorch_lora_weights.safetensors" in said
    assert "photograph" not in said.replace("photographic", "")
    assert not (run / "photos").exists() and not (run / "stage1").exists()

    pairs = Ledger(str(run / "pairs"), {})
    assert pairs.count() == PAIRS
    fates = Counter(row["reason"] or "pair" for row in Ledger(str(run / "labels"), {}).rows())
    assert fates == {"pair": PAIRS, "missing_file": 1, "no_caption": 1, "same_image": 1}
    for row in pairs.rows():
        for side, letter in (("chosen", "a"), ("rejected", "b")):
            number = row["prompt"].split()[1]
            with Image.open(tmp_path / "mine" / f"{number}{letter}.png") as image:
                crop = np.asarray(center_square(image.convert("RGB"), 64))
            with Image.open(io.BytesIO(row[side]["bytes"])) as stored:
                assert np.array_equal(np.asarray(stored), crop)
        assert row["gap"] == pytest.approx(1)  # all pairs are of the same two generators
    assert Ledger(str(run / "export" / "pickapic"), {}).count() == PAIRS

    page = (run / "report" / "index.html").read_text()
    shown = re.sub(r"<(style|script)\b.*?</\1>|<details class=\"card\">.*?</details>", "", page,
                   flags=re.DOTALL)  # fmt: skip
    visible = re.sub(r"<[^>]+>", " ", shown)
    assert re.findall(r"photograph\w*|\btwins?\b", visible) == []
    assert "9 labels = 6 pairs + 3 dropped for the reasons below." in " ".join(visible.split())
    assert "From labels to pairs" in visible and "nowhere.png" in visible
    assert '"sharp", "blurred"' in page.replace('","', '", "')
    card = (run / "stage2_alone" / "README.md").read_text()
    assert "a LoRA aligned from people's labels" in card and "photograph" not in card
    assert "Diffusion Model Alignment Using Direct Preference Optimization" in card

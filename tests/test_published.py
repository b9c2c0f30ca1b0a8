"""The published tables open in pandas and `datasets` by the names of their folders."""

from __future__ import annotations

import io
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from huggingface_hub import DatasetCard
from PIL import Image
from published import IMAGES, curation, photograph

from raypref.core.ledger import Ledger, write_bytes
from raypref.curate.export import export

TABLES = ("pairs", "photos", "rejects")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    curation(folder)
    return folder


def loaded(folder: Path, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), cache_dir=str(cache))["train"]


@pytest.mark.parametrize(("name", "rows"), [("pairs", 3), ("photos", 7), ("rejects", 2)])
def test_a_table_opens_by_the_name_of_its_folder(run: Path, tmp_path: Path, name, rows) -> None:
    frame = pd.read_parquet(run / name)
    data = loaded(run / name, tmp_path)
    assert len(frame) == len(data) == rows
    assert [*frame.columns] == data.column_names
    plain = [column for column in frame.columns if column not in IMAGES]
    own = frame[plain].astype(object).where(frame[plain].notna(), None)
    assert own.to_dict("records") == data.select_columns(plain).to_list()


def test_images_are_decoded(run: Path, tmp_path: Path) -> None:
    numbers = [4, 3, 2]  # the best of five first
    for row, number in zip(loaded(run / "pairs", tmp_path), numbers, strict=True):
        for name in IMAGES:
            expected = Image.open(io.BytesIO(photograph(number, bad=False)[name]))
            assert (np.asarray(row[name]) == np.asarray(expected)).all()


def test_pairs_for_other_trainers_open_by_their_folder_too(run: Path, tmp_path: Path) -> None:
    target = Ledger(str(tmp_path / "pickapic"), {})
    export(Ledger(str(run / "pairs"), {}), target, "pickapic")
    assert len(pd.read_parquet(target.path)) == 3
    assert "jpg_0" in loaded(Path(target.path), tmp_path / "cache").column_names


@pytest.mark.parametrize("name", TABLES)
def test_a_card_says_what_every_column_is(run: Path, name) -> None:
    text = (run / name / "_README.md").read_text(encoding="utf-8")
    card = DatasetCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.configs == [{"config_name": "default", "data_files": "*.parquet"}]
    described = re.findall(r"^\| `(\w+)` \| .{4,} \|$", text, re.MULTILINE)
    assert described == [*pd.read_parquet(run / name).columns]
    counts = dict(re.findall(r"^\| (\w+) \| (\d+) \|$", text, re.MULTILINE))
    assert counts == {"pair": "3", "not_needed": "2", "truncated": "2"}
    assert "What became of the 7 inputs" in text


def test_a_card_is_what_the_hub_reads_once_it_is_called_so(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pairs"
    copy.mkdir()
    for file in (run / "pairs").glob("*.parquet"):
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "README.md").write_text((run / "pairs" / "_README.md").read_text())
    data = loaded(copy, tmp_path / "cache")
    assert len(data) == 3 and isinstance(data[0]["chosen"], Image.Image)


def test_where_nothing_was_dropped_pandas_shows_an_empty_table(tmp_path: Path) -> None:
    curation(tmp_path, bad=0)
    frame = pd.read_parquet(tmp_path / "rejects")
    assert frame.empty and "reason" in frame.columns


def old(ledger: Ledger) -> Ledger:
    """As a version before wrote it."""
    folder = Path(ledger.path)
    for name in ("started.json", "manifest.json"):
        if (folder / f".{name}").exists():
            (folder / f".{name}").rename(folder / name)
    return ledger


def test_a_ledger_made_before_keeps_opening(tmp_path: Path) -> None:
    pairs = old(curation(tmp_path, seed=1)["pairs"])
    assert pairs.state() == "complete"
    assert pairs.manifest()["rows"] == pairs.count() == 3
    other = Ledger(pairs.path, {"seed": 2})
    assert other.state() == "stale"
    assert other.changes() == ["seed: 1 -> 2"]
    pairs.clear()
    assert pairs.state() == other.state() == "absent"


def test_a_ledger_begun_before_is_completed(tmp_path: Path) -> None:
    pairs = curation(tmp_path, seed=1)["pairs"]
    (Path(pairs.path) / ".manifest.json").unlink()
    assert old(pairs).state() == "partial"
    pairs.begin()
    assert pairs.state() == "partial" and not (Path(pairs.path) / ".started.json").exists()
    pairs.commit(expected=3, counts={})
    assert pairs.state() == "complete"


def test_an_old_name_left_by_a_copy_does_not_speak_for_a_new_ledger(tmp_path: Path) -> None:
    pairs = curation(tmp_path, seed=1)["pairs"]
    write_bytes(f"{pairs.path}/started.json", b'{"fingerprint": "another", "settings": {}}')
    assert pairs.state() == "complete"
    pairs.clear()
    assert pairs.state() == "absent"

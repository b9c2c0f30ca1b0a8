"""The two stages that read photographs: facts, crops, and the reasons why there are none."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpus import encode, scene, write_folder
from PIL import Image
from test_icc import named

from raypref.core.ledger import Ledger, in_folder
from raypref.core.rows import REJECT, Row
from raypref.curate.config import CurateConfig
from raypref.curate.graph import Curation
from raypref.curate.select import ignored_profiles
from raypref.curate.transforms import Crop, MeasurePhotograph
from raypref.engine.stream import Selection, StreamConfig, Streamed
from raypref.images.decode import ImageConfig
from raypref.sources.index import SourceConfig, entries


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs without captions."""
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(encode(scene(), "JPEG"))
    return tmp_path


def measured(root: Path, *, images: ImageConfig, **settings: Any) -> dict[str, Row]:
    """Every row of a source after `MeasurePhotograph`, by id."""
    source = SourceConfig(path=str(root), **settings)
    stage = MeasurePhotograph(source, images)
    stage.setup()
    rows = list(entries(source))
    stage(rows)
    return {row["id"]: row for row in rows}


def test_bad_photographs_end_with_their_reason(tmp_path):
    expected = write_folder(tmp_path / "photos")
    rows = measured(tmp_path / "photos", images=ImageConfig(size=32))
    assert {name: row.get("reject_reason") or "ok" for name, row in rows.items()} == expected
    for row in rows.values():
        rejected = row.get("reject_reason") is not None
        assert (row.get("reject_stage") == "photos") is rejected
        assert bool(row.get("reject_message")) is rejected
        assert ("key" in row) is not rejected


def test_the_facts_of_a_photograph(tmp_path):
    write_folder(tmp_path / "photos", good=2)
    rows = measured(tmp_path / "photos", images=ImageConfig(size=32))
    row = rows["photo_001.jpg"]
    data = (tmp_path / "photos" / "photo_001.jpg").read_bytes()
    caption = "a photograph named photo_001.jpg"
    assert row["key"] == hashlib.sha256(data + b"\0" + caption.encode()).hexdigest()
    assert (row["width"], row["height"]) == (160, 120)
    # As a person sees it: the file is stored lying on its side.
    turned = rows["orientation_6.png"]
    with Image.open(tmp_path / "photos" / "orientation_6.png") as stored:
        assert (turned["width"], turned["height"]) == stored.size[::-1]


def test_hashes_of_the_same_picture_in_other_files_are_alike(tmp_path):
    real = Path(__file__).parents[2] / "shared" / "data" / "photos"
    found = sorted(real.rglob("*.jpg"))[:8]
    pictures = [Image.open(path) for path in found] or [scene(n, size=(192, 128)) for n in range(8)]
    for number, picture in enumerate(pictures):
        with picture as image:
            image.save(tmp_path / f"{number}_a.png")
            smaller = image.resize((image.width * 2 // 3, image.height * 2 // 3))
            smaller.save(tmp_path / f"{number}_b.jpg", quality=70)
        (tmp_path / f"{number}_a.txt").write_text("a")
        (tmp_path / f"{number}_b.txt").write_text("b")
    rows = measured(tmp_path, images=ImageConfig(near_duplicates=True))
    hashes = {name: int(row["phash"], 16) for name, row in rows.items()}
    for name, value in hashes.items():
        for other, other_value in hashes.items():
            same = name.split("_")[0] == other.split("_")[0]
            assert ((value ^ other_value).bit_count() <= 3) == same, (name, other)
    plain = measured(tmp_path, images=ImageConfig())
    assert {row["phash"] for row in plain.values()} == {None}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", "no_caption"),
        ("   ", "no_caption"),
        ("x" * 21, "caption_too_long"),
        ("x" * 20, None),
        ("a\0b", "bad_caption"),
    ],
)
def test_captions_that_are_refused(caption, expected, photos):
    (photos / "captions.csv").write_text(f"file,caption\na.jpg,{caption}\nb.jpg,sound\n")
    rows = measured(photos, images=ImageConfig(size=32), max_caption=20)
    assert rows["a.jpg"].get("reject_reason") == expected
    assert rows["b.jpg"].get("reject_reason") is None
    assert rows["c.jpg"]["reject_reason"] == "no_caption"


def test_the_crop_is_the_middle_square_at_the_size_asked(photos):
    stripes = Image.new("RGB", (96, 64), (255, 0, 0))  # 16 + 64 + 16 columns
    stripes.paste((0, 0, 255), (16, 0, 80, 64))
    (photos / "a.jpg").write_bytes(encode(stripes, "PNG"))
    (photos / "captions.csv").write_text("file,caption\na.jpg,a\nb.jpg,b\nc.jpg,c\n")
    images = ImageConfig(size=64)
    rows = list(measured(photos, images=images).values())
    stage = Crop(SourceConfig(path=str(photos)), images)
    stage.setup()
    (photos / "b.jpg").write_bytes(b"damaged since it was measured")
    (photos / "c.jpg").write_bytes(encode(scene(7), "JPEG"))
    stage(rows)
    crop = rows[0]["chosen"]
    assert (crop.mode, crop.size) == ("RGB", (64, 64))
    assert np.unique(np.asarray(crop).reshape(-1, 3), axis=0).tolist() == [[0, 0, 255]]
    assert (rows[1]["reject_stage"], rows[1]["reject_reason"]) == ("crop", "unreadable")
    assert (rows[2]["reject_stage"], rows[2]["reject_reason"]) == ("crop", "changed")
    assert rows[1].get("chosen") is None and rows[2].get("chosen") is None


def test_ignored_profiles_are_said_once_with_their_number(tmp_path, monkeypatch, caplog):
    class SecondPass(Exception):  # noqa: N818
        pass

    def one_pass(rows: Selection, *, stages: list, ledger: Ledger, **options: Any) -> Streamed:
        if ledger.path.endswith("scored"):
            raise SecondPass
        own = [row for name in rows.ledger.parts() for row in rows.part(name).to_pylist()]
        for stage in stages:
            stage.setup()
            stage(own)
        ledger.begin()
        schema = pa.schema([*rows.schema(), *MeasurePhotograph.writes, *REJECT])
        for row in own:  # a part each
            ledger.write_part(pa.Table.from_pylist([row], schema=schema))
        ledger.commit(expected=len(own), counts={})
        return Streamed(Counter(), 0.0)

    monkeypatch.setattr("raypref.curate.graph.stream", one_pass)
    monkeypatch.setattr("raypref.curate.photographs.stream", one_pass)
    (tmp_path / "photos").mkdir()
    profiles = {"a": "Display P3", "b": "Adobe RGB (1998)", "c": "sRGB IEC61966-2.1", "d": ""}
    for name, profile in {**profiles, "bare": "Display P3"}.items():
        file = tmp_path / "photos" / f"{name}.jpg"
        scene(ord(name[0])).save(file, icc_profile=named(profile, version=2) if profile else None)
        if name in profiles:
            file.with_suffix(".txt").write_text(name)

    def said(**images: str) -> list[str]:
        caplog.clear()
        config = CurateConfig(source={"path": str(tmp_path / "photos")}, images=images)
        place = in_folder(str(tmp_path / images.get("profiles", "run")))
        with pytest.raises(SecondPass):
            Curation(config, place=place).run(StreamConfig())
        return [r.message for r in caplog.records if "profile" in r.message]

    assert said() == [
        "2 photographs with a colour profile other than sRGB, which is ignored: colours are off; "
        "images.profiles=convert converts them"
    ]
    assert said(profiles="convert") == []


def test_a_ledger_of_an_older_version_has_no_profiles(tmp_path):
    older = Ledger(str(tmp_path), {})
    older.begin()
    older.write_part(pa.Table.from_pylist([{"id": "a", "reject_reason": None}]))
    assert ignored_profiles(older) == 0

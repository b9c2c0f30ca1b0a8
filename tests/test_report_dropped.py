"""Dropped photographs on the page: some of each reason, drawn once, within curation's limits."""

import io
import random
import shutil
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from report_runs import fill, png, scene

from raypref.core.ledger import Ledger
from raypref.core.rows import INDEX
from raypref.curate.config import CurateConfig
from raypref.curate.publish import PHOTOS, REJECTS
from raypref.images.decode import ImageConfig, Reason
from raypref.report.dropped import MOST, dropped, shares
from raypref.report.photographs import FILTERS
from raypref.report.reasons import keeps
from raypref.report.views import DroppedFor
from raypref.sources.index import SourceConfig


@pytest.mark.parametrize("seed", range(40))
def test_what_is_shown_is_spread_over_the_reasons(seed):
    draw = random.Random(seed)
    counts = {str(reason): draw.randint(1, 300) for reason in range(draw.randint(1, 8))}
    most = draw.randint(8, 250)
    given = shares(counts, most)
    assert sum(given.values()) == min(most, sum(counts.values()))
    assert all(0 < given[reason] <= counts[reason] for reason in counts)
    # Whoever gets fewer than another has none left to show.
    cut = [given[reason] for reason in counts if given[reason] < counts[reason]]
    assert not cut or min(cut) >= max(given.values()) - 1


def make(folder: Path, files: dict[str, tuple[bytes, str]]) -> CurateConfig:
    """A curation that dropped these files, by reason."""
    source = folder / "source"
    source.mkdir()
    photos, rejects, entries = [], [], []
    for name, (data, reason) in files.items():
        if data:
            (source / name).write_bytes(data)
        facts = {"id": name, "uri": name, "caption": f"caption of {name}"}
        known = reason in ("low_colorfulness", "not_needed")
        status = "not_selected" if known else "rejected"
        colorfulness = 12.345 if known else None
        photos.append({**facts, "status": status, "reason": reason, "colorfulness": colorfulness})
        entries.append(facts)
        if not known:
            rejects.append({**facts, "stage": "photos", "reason": reason, "message": f"no {name}"})
    photos.append({"id": "kept", "uri": "kept", "status": "pair"})
    fill(Ledger(str(folder / "photos"), {}), photos, PHOTOS)
    fill(Ledger(str(folder / "rejects"), {}), rejects, REJECTS)
    fill(Ledger(str(folder / "curate" / "measured"), {}), entries, INDEX)
    return CurateConfig(
        source=SourceConfig(path=str(source)),
        images=ImageConfig(max_pixels=40_000, max_bytes=10**6),
    )


def look(folder: Path, config: CurateConfig) -> dict[str, DroppedFor]:
    order = [reason for _, reasons in FILTERS for reason in reasons]
    found = dropped(str(folder), config, report=str(folder / "report"), mean=42.125, order=order)
    return {own.reason: own for own in found}


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_each_reason_has_its_photographs_and_what_would_keep_them(tmp_path):
    comment = b"<script>alert(1)</script>"
    files = {
        "grey.jpg": (jpeg(scene(1, 160), comment=comment), "low_colorfulness"),
        "small.png": (png(scene(2, 20)), "too_small"),
        "long.png": (png(Image.new("RGB", (200, 10), "red")), "bad_aspect"),
        "broken.png": (b"no image", "unreadable"),
        "gone.png": (b"", "missing_file"),
        "huge.png": (png(Image.new("RGB", (300, 300))), "too_large"),
    }
    config = make(tmp_path, files)
    found = look(tmp_path, config)
    assert list(found)[-1] == "low_colorfulness", "in the order of the filters"
    assert found["low_colorfulness"].keep == (
        "Not above the mean of the set, 42.12: the filter keeps the more colorful ones, of most "
        "sets about half. "
        "color.enabled=false keeps all."
    )
    (grey,) = found["low_colorfulness"].shown
    assert (grey.file, grey.note) == ("grey.jpg", "colorfulness 12.35")
    assert found["missing_file"].shown[0].note == "no gone.png"
    drawn = {own.shown[0].file: own.shown[0].picture for own in found.values()}
    assert {name for name, picture in drawn.items() if picture is None} == {
        "broken.png",
        "gone.png",
        "huge.png",  # above the limit of pixels: its bytes are not decoded again either
    }
    for name in ("grey.jpg", "small.png", "long.png"):
        picture = drawn[name]
        written = (tmp_path / "report" / picture.full).read_bytes()
        assert Image.open(io.BytesIO(written)).size == (picture.width, picture.height)
        assert comment not in written, "the source's bytes are not handed on"
    assert drawn["small.png"].pixelated and not drawn["grey.jpg"].pixelated


def test_pictures_are_drawn_once_and_outlive_the_source(tmp_path):
    config = make(tmp_path, {"a.png": (png(scene(1, 64)), "not_needed")})
    first = look(tmp_path, config)
    shutil.rmtree(tmp_path / "source")
    assert look(tmp_path, config) == first and first["not_needed"].shown[0].picture


def test_without_source_or_entries_the_paths_are_still_there(tmp_path):
    config = make(tmp_path, {"a.png": (png(scene(1, 64)), "not_needed")})
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    (one,) = look(tmp_path, config)["not_needed"].shown
    assert (one.file, one.picture) == ("a.png", None)
    shutil.rmtree(tmp_path / "curate")
    assert look(tmp_path, config)["not_needed"].shown[0].picture is None
    (tmp_path / "elsewhere").rename(tmp_path / "source")
    fill(
        Ledger(str(tmp_path / "curate" / "measured"), {}),
        [{"id": "a.png", "uri": "a.png", "caption": ""}],
        INDEX,
    )
    assert look(tmp_path, config)["not_needed"].shown[0].picture, "tried again"


def test_thousands_of_dropped_photographs_are_a_bounded_sample(tmp_path):
    files = {f"{i:05d}.png": (b"", "low_colorfulness") for i in range(1200)}
    files["z.png"] = (png(scene(1, 64)), "not_needed")
    found = look(tmp_path, make(tmp_path, files))
    assert sum(len(own.shown) for own in found.values()) == MOST
    assert found["low_colorfulness"].count == 1200 and len(found["not_needed"].shown) == 1
    numbers = sorted(int(own.file[:5]) for own in found["low_colorfulness"].shown)
    assert max(b - a for a, b in pairwise([0, *numbers, 1199])) <= 10, "evenly spread"


FILTERED = [reason for _, reasons in FILTERS for reason in reasons]


@pytest.mark.parametrize("reason", [*get_args(Reason), *FILTERED])
def test_every_reason_says_what_to_do(reason):
    text = keeps(reason, CurateConfig(source=SourceConfig(path="p")), mean=None)
    assert text.endswith(".") and len(text) < 200

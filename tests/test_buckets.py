"""Aspect-ratio buckets: the table, the nearest one, and crops of photographs and labels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import small
from corpus import encode, scene
from in_process import without_ray
from label_listing import Listing, made, picture, png
from PIL import ExifTags, Image
from training import BASES

from raypref.core.config import InputError, build, load, results_of
from raypref.core.rows import Row
from raypref.curate.perturb import PerturbConfig
from raypref.curate.transforms import Crop, MeasurePhotograph
from raypref.images.buckets import Size, bucket_sizes, nearest_bucket
from raypref.images.colorfulness import colorfulness
from raypref.images.decode import ImageConfig, center_crop, image_size, open_png
from raypref.models import checks
from raypref.run.config import RunConfig
from raypref.sources.index import SourceConfig, entries

# Height and width of SDXL's training (Podell et al. 2023, appendix I), from 1:2 to 2:1.
SDXL = {
    *((704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152)),
    *((896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960), (1088, 960), (1088, 896)),
    *((1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1344, 704), (1408, 704)),
}
WORLD = ImageConfig(size=64, bucket_step=16)


def kohya(area: int, shortest: int, longest: int, step: int) -> set[Size]:
    """`make_bucket_resolutions` of kohya's trainers, written out."""
    root = int(math.sqrt(area) // step) * step
    found, width = {(root, root)}, shortest
    while width <= longest:
        height = min(longest, int((area // width) // step) * step)
        if height >= shortest:
            found |= {(width, height), (height, width)}
        width += step
    return found


@pytest.mark.parametrize("side, step", [(512, 64), (512, 32), (1024, 64), (768, 64), (64, 16)])
@pytest.mark.parametrize("ratio", [1.0, 1.5, 2.0, 4.0])
def test_the_buckets_are_those_of_other_trainers_within_the_ratio(side, step, ratio):
    theirs = kohya(side * side, step, side * side // step, step)
    expected = {(w, h) for w, h in theirs if max(w, h) <= ratio * min(w, h)}
    buckets = bucket_sizes(side, step, ratio)
    assert {*buckets} == expected and len(buckets) == len(expected)
    assert (side, side) in buckets and all(w * h <= side * side for w, h in buckets)
    shapes = [w / h for w, h in buckets]
    assert shapes == sorted(shapes)


def test_the_buckets_of_sdxl():
    ours = bucket_sizes(1024, 64, 2.0)
    assert {*ours} <= SDXL
    assert ours == (
        *((704, 1408), (768, 1344), (768, 1280), (832, 1216), (896, 1152), (960, 1088)),
        (1024, 1024),
        *((1088, 960), (1152, 896), (1216, 832), (1280, 768), (1344, 768), (1408, 704)),
    )


@pytest.mark.parametrize("side, step, ratio", [(512, 64, 2.0), (1024, 64, 4.0), (64, 16, 2.0)])
def test_an_image_goes_to_the_bucket_of_the_nearest_log_aspect(side, step, ratio):
    buckets = bucket_sizes(side, step, ratio)
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 6000, (300, 2)).tolist():
        apart = [abs(math.log(width / height) - math.log(w / h)) for w, h in buckets]
        first, second = sorted(apart)[:2]
        if second - first > 1e-9:
            assert nearest_bucket((width, height), buckets) == buckets[apart.index(first)]
    for bucket in buckets:
        assert nearest_bucket((3 * bucket[0], 3 * bucket[1]), buckets) == bucket


def test_of_two_that_are_equally_near_one_is_taken_whatever_the_order():
    # In logarithms 4:3 lies in the middle of 1:1 and 16:9.
    buckets = [(64, 64), (96, 54)]
    for order in (buckets, buckets[::-1]):
        assert nearest_bucket((400, 300), order) == (96, 54), "that with more pixels"
    assert nearest_bucket((300, 300), [(40, 80), (80, 40)]) == (80, 40), "the wider one"


@pytest.mark.parametrize("source", [(640, 480), (480, 640), (515, 512), (100, 75), (65, 260)])
@pytest.mark.parametrize("size", [(384, 640), (640, 384), (576, 448), (80, 48)])
def test_a_crop_covers_its_size_and_is_cut_from_the_centre(source, size):
    image = scene(3, size=source)
    scale = max(size[0] / source[0], size[1] / source[1])
    scaled = [math.floor(scale * length + 1e-9) for length in source]
    whole = np.asarray(image.resize((scaled[0], scaled[1]), Image.Resampling.LANCZOS))
    x, y = (int(np.rint((have - want) / 2)) for have, want in zip(scaled, size, strict=True))
    expected = whole[y : y + size[1], x : x + size[0]]
    np.testing.assert_array_equal(np.asarray(center_crop(image, size)), expected)
    assert expected.shape == (size[1], size[0], 3)


# ------------------------------------------------------------------ settings


def test_by_default_all_are_squares_and_older_fingerprints_stay():
    plain = ImageConfig()
    assert plain.crop_sizes == ((512, 512),)
    assert plain.crop_size((4000, 1000)) == (512, 512)
    assert not [key for key in results_of({"images": plain}) if "bucket" in key]
    assert results_of({"images": WORLD})["images.bucket_step"] == 16


def test_a_step_that_the_square_is_no_multiple_of_is_refused():
    with pytest.raises(InputError, match=r"^images\.bucket_step=48: images\.size=64 must be a mul"):
        load(RunConfig, "tiny", ["images.bucket_step=48"])
    with pytest.raises(InputError, match=r"images\.bucket_ratio"):
        build(ImageConfig, {"bucket_ratio": 0.5}, prefix="images.")


def test_a_step_that_a_model_does_not_take_is_refused():
    checks.check_crops(BASES["sd15"], WORLD)
    images = ImageConfig(size=64, bucket_step=4)
    with pytest.raises(InputError, match=r"^images\.bucket_step=4: .* multiples of 8"):
        checks.check_crops(BASES["sd15"], images)
    painter = PerturbConfig(model=str(small.path("sd15-inpaint")))
    painter.check(64, 16)
    with pytest.raises(InputError, match=r"^images\.bucket_step=4: perturb\.model"):
        painter.check(64, 4)
    with pytest.raises(InputError, match=r"^perturb\.size=96 paints squares"):
        painter.model_copy(update={"size": 96}).check(64, 16)


# ------------------------------------------------------------------ photographs and labels

# Names and sizes of photographs as they are stored, and the crop that each gets.
STORED: dict[str, tuple[Size, Size]] = {
    "square": ((100, 100), (64, 64)),
    "wide": ((200, 120), (80, 48)),
    "tall": ((120, 200), (48, 80)),
    "turned": ((200, 120), (48, 80)),  # a telephone's, upright by its metadata
    "nearly": ((101, 97), (64, 64)),
    "strip": ((400, 100), (80, 48)),  # wider than any bucket
}


def write_photographs(folder: Path) -> SourceConfig:
    folder.mkdir()
    for number, (name, (size, _)) in enumerate(STORED.items()):
        exif = Image.Exif()
        if name == "turned":
            exif[ExifTags.Base.Orientation] = 6
        scene(number, size=size).save(folder / f"{name}.png", exif=exif)
        (folder / f"{name}.txt").write_text(f"a scene, {name}")
    return SourceConfig(path=str(folder))


def test_a_photograph_is_measured_and_cropped_in_its_bucket(tmp_path):
    source = write_photographs(tmp_path / "photos")
    rows: list[Row] = list(entries(source))
    for stage in (MeasurePhotograph(source, WORLD), Crop(source, WORLD)):
        stage.setup()
        stage(rows)
    assert [row.get("reject_reason") for row in rows] == [None] * len(STORED)
    for row in rows:
        stored, crop = STORED[Path(row["uri"]).stem]
        assert row["chosen"].size == image_size(encode(row["chosen"], "PNG")) == crop
        assert row["colorfulness"] == colorfulness(row["chosen"])
        turned = "turned" in row["uri"]
        assert (row["width"], row["height"]) == (stored[::-1] if turned else stored)
    squares = [dict(row) for row in rows]
    crop = Crop(source, ImageConfig(size=64))
    crop.setup()
    crop(squares)
    assert {row["chosen"].size for row in squares} == {(64, 64)}


def test_both_images_of_a_label_have_the_bucket_of_the_chosen_one(tmp_path, monkeypatch):
    without_ray(monkeypatch)
    listing = Listing(tmp_path / "labels", monkeypatch)
    listing.pair(0.0)  # the second image was preferred
    listing.pair(1.0)
    for name, size in {"0-0": (64, 64), "0-1": (120, 200), "1-0": (200, 120)}.items():
        wanted = picture(1).resize(size)
        (listing.folder / f"{name}.png").write_bytes(png(wanted))
    maker = made(listing.config("images.bucket_step=16"), tmp_path / "run")
    rows = sorted(maker.pairs.rows(), key=lambda row: row["id"])
    crops = [[open_png(row[side]["bytes"]) for side in ("chosen", "rejected")] for row in rows]
    assert [[image.size for image in pair] for pair in crops] == [[(48, 80)] * 2, [(80, 48)] * 2]
    square = Image.open(listing.folder / "0-0.png").convert("RGB")
    np.testing.assert_array_equal(
        np.asarray(crops[0][1]), np.asarray(center_crop(square, (48, 80)))
    )

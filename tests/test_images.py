"""Untrusted bytes: the right reason for every bad image, the right pixels for every other."""

from __future__ import annotations

import csv
import io
import math
import pickle
import time
import tracemalloc
import warnings
from pathlib import Path

import corpus
import numpy as np
import pytest
from PIL import Image, ImageCms
from test_icc import named

from raypref.core.config import results_of
from raypref.images.decode import (
    FORMATS,
    IGNORED_PROFILE,
    BadImage,
    ImageConfig,
    center_square,
    decode,
    encode_png,
    open_png,
)

CONFIG = ImageConfig()
SAMPLES = corpus.images()
WITHOUT_HEIF = pytest.mark.skipif("HEIF" in FORMATS, reason="pillow-heif is installed")


def outcome(data: bytes, config: ImageConfig = CONFIG) -> str:
    """The reason word, or "ok"."""
    try:
        decode(data, config)
    except BadImage as bad:
        return bad.reason
    return "ok"


def pixels(name: str, config: ImageConfig = CONFIG) -> np.ndarray:
    """Decoded pixels of a sample as int (H, W, 3)."""
    return np.asarray(decode(SAMPLES[name].data, config)).astype(int)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_ends_as_expected_and_silently(name, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(SAMPLES[name].data) == SAMPLES[name].expected
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [s.name for s in SAMPLES.values() if s.expected == "ok"])
def test_what_is_accepted_comes_out_as_plain_rgb(name):
    image = decode(SAMPLES[name].data, CONFIG)
    assert image.mode == "RGB"
    assert image.info == {}
    assert not image.getexif()


def test_the_message_says_what_was_wrong():
    with pytest.raises(BadImage, match="1x20000 pixels, the smallest side accepted is 64") as info:
        decode(SAMPLES["thread.png"].data, CONFIG)
    assert info.value.reason == "too_small"
    again = pickle.loads(pickle.dumps(info.value))
    assert (again.reason, again.message) == (info.value.reason, info.value.message)


def test_lossless_formats_keep_every_pixel():
    expected = np.asarray(corpus.scene())
    for name in ("really_png.jpg", "still.webp", "photo.bmp", "photo.tif", "pages.tif"):
        np.testing.assert_array_equal(pixels(name), expected, err_msg=name)


def test_jpeg_variants_stay_close_to_the_scene():
    expected = np.asarray(corpus.scene()).astype(int)
    # CMYK of a picture without black ink is its negative: the colours come back.
    for name in ("tail.jpg", "no_extension", "progressive.jpg", "cmyk.jpg", "camera.mpo"):
        assert np.abs(pixels(name) - expected).mean() < 4, name


def test_cmyk_has_the_right_colour():
    ink = Image.new("CMYK", (96, 96), (0, 255, 255, 0))  # magenta + yellow = red
    red = np.asarray(decode(corpus.encode(ink, "JPEG", quality=95), CONFIG)).reshape(-1, 3)
    assert np.abs(red.mean(0) - (255, 0, 0)).max() < 3


def test_grey_and_one_bit():
    grey = np.asarray(corpus.scene().convert("L")).astype(int)
    assert np.abs(pixels("grey.jpg") - grey[..., None]).mean() < 4
    bits = np.asarray(corpus.scene().convert("1")).astype(int) * 255
    np.testing.assert_array_equal(pixels("one_bit.png"), np.repeat(bits[..., None], 3, axis=2))


# The turn that brings a stored picture upright, written with numpy instead of Pillow.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),  # a quarter clockwise
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),  # a quarter counter-clockwise
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation, kind):
    stored = corpus.scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(corpus.encode(stored, kind, exif=exif, **options), CONFIG)
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](np.asarray(stored)))


def test_broken_exif_keeps_the_picture_as_stored():
    plain = pixels("no_extension")
    broken = [name for name in SAMPLES if name.startswith("exif_")]
    assert len(broken) >= 4
    for name in broken:
        np.testing.assert_array_equal(pixels(name), plain, err_msg=name)


@pytest.mark.parametrize("name", ["sixteen.png", "sixteen.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(name):
    expected = corpus.ramp16() / 257
    decoded = pixels(name)
    assert np.abs(decoded - expected[..., None]).max() <= 0.5
    assert decoded.mean() == pytest.approx(127.5, abs=0.1)


def test_big_endian_sixteen_bit_tiff():
    image = Image.frombytes("I;16B", (256, 128), corpus.ramp16().astype(">u2").tobytes())
    decoded = np.asarray(decode(corpus.encode(image, "TIFF"), CONFIG)).astype(int)
    assert np.abs(decoded - corpus.ramp16()[..., None] / 257).max() <= 0.5


@pytest.mark.parametrize(
    ("name", "colour"),
    [
        ("rgba.png", (200, 0, 0)),
        ("rgba.webp", (200, 0, 0)),
        ("la.png", (90, 90, 90)),
        ("palette.png", (10, 120, 200)),
    ],
)
def test_transparency_shows_white(name, colour):
    decoded = pixels(name)
    middle = corpus.WIDTH // 2
    assert (decoded[:, :middle] == colour).all()
    assert (decoded[:, middle:] == 255).all()


def test_half_transparent_is_half_white():
    veil = Image.new("RGBA", (80, 80), (0, 100, 200, 128))
    decoded = np.asarray(decode(corpus.encode(veil, "PNG"), CONFIG)).astype(int)
    expected = np.array([0, 100, 200]) * 128 / 255 + 255 * 127 / 255
    assert np.abs(decoded - expected).max() <= 1


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_first_frame_on_request(name):
    decoded = pixels(name, ImageConfig(animated="first_frame"))
    assert np.abs(decoded - np.asarray(corpus.scene(0)).astype(int)).mean() < 12
    assert np.abs(decoded - np.asarray(corpus.scene(1)).astype(int)).mean() > 30


@pytest.mark.parametrize("side", [12_000, 20_000, 65_000])
def test_a_bomb_costs_neither_memory_nor_time(side):
    data = corpus.png_header(side, side)
    tracemalloc.start()
    start = time.perf_counter()
    assert outcome(data) == "too_large"
    took = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data) < 100
    assert took < 1
    assert peak < 10 * 2**20


def test_bombs_do_not_grow_the_process():
    resource = pytest.importorskip("resource")  # Pillow's pixels are invisible to tracemalloc
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        assert outcome(corpus.png_header(12_000, 12_000)) == "too_large"  # 412 MiB if decoded
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 100 * 1024


def test_limits_come_from_the_config():
    sound = corpus.encode(corpus.scene(), "PNG")  # 120x80
    assert outcome(sound, ImageConfig(max_bytes=len(sound))) == "ok"
    assert outcome(sound, ImageConfig(max_bytes=len(sound) - 1)) == "too_many_bytes"
    assert outcome(sound, ImageConfig(max_pixels=9600)) == "ok"
    assert outcome(sound, ImageConfig(max_pixels=9599)) == "too_large"
    assert outcome(sound, ImageConfig(min_side=80)) == "ok"
    assert outcome(sound, ImageConfig(min_side=81)) == "too_small"
    assert outcome(sound, ImageConfig(max_aspect=1.5)) == "ok"
    assert outcome(sound, ImageConfig(max_aspect=1.49)) == "bad_aspect"


def test_only_bad_image_comes_out_of_damaged_bytes():
    rng = np.random.default_rng(0)
    config = ImageConfig(animated="first_frame")
    ends = set()
    for sample in SAMPLES.values():
        if sample.expected != "ok":
            continue
        for _ in range(25):
            data = bytearray(sample.data)
            reach = min(len(data), 300) if rng.random() < 0.5 else len(data)  # often the header
            for position in rng.integers(reach, size=rng.integers(1, 6)):
                data[position] = rng.integers(256)
            ends.add(outcome(bytes(data), config))
    assert {"ok", "truncated", "unreadable"} <= ends


@pytest.mark.parametrize(
    "source", [(640, 480), (480, 640), (515, 512), (512, 2047), (100, 75), (512, 512), (65, 260)]
)
@pytest.mark.parametrize("size", [512, 64])
def test_center_square_against_own_arithmetic(source, size):
    image = corpus.scene(3, size=source)
    width, height = source
    if width >= height:
        scaled = (math.floor(size * width / height), size)
    else:
        scaled = (size, math.floor(size * height / width))
    whole = np.asarray(image.resize(scaled, Image.Resampling.LANCZOS))
    x, y = (int(np.rint((long - size) / 2)) for long in scaled)  # rint: halves to even, as round()
    square = np.asarray(center_square(image, size))
    np.testing.assert_array_equal(square, whole[y : y + size, x : x + size])
    assert square.shape == (size, size, 3)


def test_center_square_keeps_the_centre():
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 100))
    assert center_square(image, 100).getcolors() == [(100 * 100, (0, 0, 255))]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_png_round_trip_is_lossless(mode):
    image = corpus.scene(5).convert(mode)
    again = open_png(encode_png(image))
    assert again.mode == mode
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


def test_folder_of_photographs(tmp_path):
    expected = corpus.write_folder(tmp_path / "photos", good=4)
    with (tmp_path / "photos" / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == list(expected)
    assert sum(reason != "ok" for reason in expected.values()) >= 15
    assert sum(name.startswith("photo_") for name in expected) == 4
    found = {name: outcome((tmp_path / "photos" / name).read_bytes()) for name in expected}
    assert found == expected


def test_real_photographs_all_decode(shared_data: Path):
    files = sorted((shared_data / "photos").glob("*.jpg"))
    assert len(files) == 216
    for file in files:
        image = decode(file.read_bytes(), CONFIG)
        assert image.mode == "RGB"
        assert 64 <= min(image.size) <= max(image.size) <= 512


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow reads no AVIF")
def test_avif_is_read_and_a_damaged_one_is_dropped():
    photo = corpus.scene()
    buffer = io.BytesIO()
    photo.save(buffer, "AVIF", quality=95)
    data = buffer.getvalue()
    got = np.asarray(decode(data, CONFIG)).astype(int)
    assert np.abs(got - np.asarray(photo).astype(int)).mean() < 3
    buffer = io.BytesIO()
    photo.save(buffer, "AVIF", save_all=True, append_images=[corpus.scene(1)])
    assert outcome(buffer.getvalue()) == "animated"
    rng = np.random.default_rng(0)
    for _ in range(150):
        bad = bytearray(data[: rng.integers(1, len(data) + 1)])
        for place in rng.integers(0, len(bad), rng.integers(0, 8)):
            bad[place] = rng.integers(256)
        outcome(bytes(bad))  # nothing but BadImage is raised


@pytest.mark.parametrize(
    ("data", "name"),
    [
        pytest.param(b"\x00\x00\x00\x18ftypheic" + bytes(99), "HEIC", marks=WITHOUT_HEIF),
        pytest.param(b"\x00\x00\x00\x1cftypmif1" + bytes(99), "HEIC", marks=WITHOUT_HEIF),
        (b"\xff\x0a" + bytes(99), "JPEG XL"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
    ],
)
def test_a_format_that_is_not_read_is_told_from_damage(data, name):
    fix = r"convert it to JPEG or PNG"
    fix += r", or install .*\(pip install 'raypref\[heic\]'\)$" if name == "HEIC" else "$"
    with pytest.raises(BadImage, match=f"unsupported_format: {name} is not read here.*{fix}"):
        decode(data, CONFIG)


def srgb_profile():
    """sRGB's own profile: converting by it changes nothing; its swapped copy changes a lot."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped(profile):
    """The profile with the tags of the red and the green primary exchanged."""
    return profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_colour_profile_is_converted_only_if_asked_and_never_loses_the_photograph(mode):
    scene = corpus.scene(3).convert(mode)
    convert = ImageConfig(profiles="convert")
    plain = np.asarray(scene.convert("RGB")).astype(int)

    def read(profile, config):
        buffer = io.BytesIO()
        scene.save(buffer, "PNG", icc_profile=profile)
        return np.asarray(decode(buffer.getvalue(), config)).astype(int)

    other = swapped(srgb_profile())
    np.testing.assert_array_equal(read(other, CONFIG), plain)
    np.testing.assert_array_equal(read(b"no profile" * 20, convert), plain)
    assert np.abs(read(srgb_profile(), convert) - plain).max() <= 2
    assert np.abs(read(other, convert) - plain[..., [1, 0, 2]]).max() <= 2


def test_the_default_of_a_later_setting_is_in_no_fingerprint():
    assert "images.profiles" not in results_of({"images": CONFIG})
    asked = results_of({"images": ImageConfig(profiles="convert")})
    assert asked["images.profiles"] == "convert"


def test_a_profile_that_is_ignored_is_named():
    srgb, other = srgb_profile(), named("Display P3", version=4)

    def read(profile, config=CONFIG, image=None):
        buffer = io.BytesIO()
        (image or corpus.scene(3)).save(buffer, "PNG", icc_profile=profile)
        return decode(buffer.getvalue(), config)

    grey, wide = corpus.scene(3).convert("L"), Image.new("I;16", (80, 80))
    assert read(other).info == read(other, image=grey).info == {IGNORED_PROFILE: "Display P3"}
    assert read(srgb).info == read(b"no profile" * 20).info == {}
    assert read(other, ImageConfig(profiles="convert")).info == {}
    assert read(other, image=wide).info == {}  # which is not converted either
    assert Image.open(io.BytesIO(encode_png(read(other)))).info == {}  # and travels no further

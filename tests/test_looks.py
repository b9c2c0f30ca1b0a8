"""The looks of a picture and of a region, by hand and against the whole."""

import math

import numpy as np
import pytest
from PIL import Image

from raypref.images.looks import LOOKS, looks, texture_detail


def picture(side: int = 32) -> Image.Image:
    drawn = np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def test_looks_by_hand() -> None:
    flat = looks(Image.new("RGB", (8, 8), (255, 255, 255)))
    levels = {"brightness": 1, "contrast": 0, "saturation": 0}
    assert flat == {**levels, "composition": 1, "texture": 0}
    assert looks(Image.new("RGB", (8, 8), (255, 0, 0)))["saturation"] == 1
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:, 4:] = 255
    split = looks(Image.fromarray(halves))
    assert (split["brightness"], split["contrast"]) == (0.5, 0.5)
    assert split["composition"] == pytest.approx(1), "the edge runs through the middle"
    corner = np.zeros((64, 64, 3), np.uint8)
    corner[:2, :2] = 255
    assert looks(Image.fromarray(corner))["composition"] < 0.1


def test_a_region_of_everything_is_the_whole() -> None:
    image = picture()
    whole = looks(image)
    assert looks(image, np.ones((32, 32), bool)) == pytest.approx(whole, rel=1e-12)
    assert whole["texture"] == texture_detail(image)
    assert list(whole) == list(LOOKS)


def test_a_region_is_blind_to_what_is_beyond_its_rim() -> None:
    """One pixel beyond is seen by the slopes and the Laplacian; nothing further is."""
    region = np.zeros((32, 32), bool)
    region[8:20, 5:17] = True
    pixels = np.asarray(picture())
    other = np.asarray(picture().transpose(Image.Transpose.ROTATE_90)).copy()
    other[7:21, 4:18] = pixels[7:21, 4:18]
    own = looks(Image.fromarray(pixels), region)
    assert looks(Image.fromarray(other), region) == own
    assert looks(Image.fromarray(other)) != looks(Image.fromarray(pixels))
    alone = looks(Image.fromarray(pixels[8:20, 5:17]))
    for name in ("brightness", "contrast", "saturation"):
        assert own[name] == pytest.approx(alone[name])


def test_composition_is_told_from_the_middle_of_the_region() -> None:
    dot = np.zeros((64, 64, 3), np.uint8)
    dot[16:18, 16:18] = 255
    around, beside = np.zeros((2, 64, 64), bool)
    around[1:33, 1:33] = True
    beside[12:44, 12:44] = True
    image = Image.fromarray(dot)
    assert looks(image, around)["composition"] == pytest.approx(1)
    assert looks(image, beside)["composition"] < 0.4


def test_a_region_without_pixels_has_no_looks() -> None:
    found = looks(picture(), np.zeros((32, 32), bool))
    assert list(found) == list(LOOKS) and all(map(math.isnan, found.values()))
    one = np.zeros((32, 32), bool)
    one[3, 3] = True
    assert looks(picture(), one)["contrast"] == 0 and looks(picture(), one)["texture"] == 0

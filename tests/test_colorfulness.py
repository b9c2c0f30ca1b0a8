"""Colorfulness: the formula written out again, its limits, and what is published of the photos."""

from __future__ import annotations

from pathlib import Path

import corpus
import numpy as np
import pytest
from PIL import Image

from raypref.images.colorfulness import ColorConfig, colorfulness
from raypref.images.decode import ImageConfig, center_square, decode


def written_out(image: Image.Image) -> float:
    """The formula over explicit sums, without std, hypot or broadcasting tricks."""
    pixels = np.array(image.getdata(), dtype=np.float64)
    r, g, b = pixels[:, 0], pixels[:, 1], pixels[:, 2]
    n = len(pixels)
    rg, yb = r - g, 0.5 * (r + g) - b
    mean_rg, mean_yb = rg.sum() / n, yb.sum() / n
    var_rg = ((rg - mean_rg) ** 2).sum() / n
    var_yb = ((yb - mean_yb) ** 2).sum() / n
    return (var_rg + var_yb) ** 0.5 + 0.3 * (mean_rg**2 + mean_yb**2) ** 0.5


@pytest.mark.parametrize("seed", range(5))
def test_against_the_formula(seed):
    image = corpus.scene(seed)
    assert colorfulness(image) == pytest.approx(written_out(image), rel=1e-12)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_constant_grey_is_zero(level):
    assert colorfulness(Image.new("RGB", (64, 64), (level,) * 3)) == 0


def test_any_grey_picture_is_zero():
    assert colorfulness(corpus.scene().convert("L").convert("RGB")) == 0


def test_known_values():
    # One colour: only the offset counts. Pure red has rg = 255, yb = 127.5.
    red = Image.new("RGB", (10, 10), (255, 0, 0))
    assert colorfulness(red) == pytest.approx(0.3 * (255**2 + 127.5**2) ** 0.5)
    # Half red, half green: rg is +-255 with mean 0, yb is 127.5 everywhere.
    red.paste((0, 255, 0), (0, 0, 5, 10))
    assert colorfulness(red) == pytest.approx(255 + 0.3 * 127.5)


def test_does_not_depend_on_place_or_size():
    image = corpus.scene()
    twice = Image.new("RGB", (image.width, 2 * image.height))
    twice.paste(image, (0, 0))
    twice.paste(image.transpose(Image.Transpose.ROTATE_180), (0, image.height))
    assert colorfulness(twice) == pytest.approx(colorfulness(image))


def test_other_modes_are_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="mode L"):
        colorfulness(Image.new("L", (8, 8)))


def test_on_by_default():
    assert ColorConfig().enabled


def test_published_facts_of_the_photographs(shared_data: Path):
    files = sorted((shared_data / "photos").glob("*.jpg"))
    images = [decode(file.read_bytes(), ImageConfig()) for file in files]
    # The README's figures are of the whole pictures: 0..126, mean 40, median 37, 93 above.
    whole = np.array([colorfulness(image) for image in images])
    assert len(whole) == 216
    assert whole.min() == 0
    assert round(whole.max()) == 126
    assert round(whole.mean()) == 40
    assert round(np.median(whole)) == 37
    assert (whole > whole.mean()).sum() == 93
    assert (whole < 1).sum() == 3  # black and white
    # The pipeline measures the square crop, where the mean moves by one and two fall below it.
    crop = np.array([colorfulness(center_square(image, 512)) for image in images])
    assert round(crop.mean()) == 41
    assert round(np.median(crop)) == 37
    assert (crop > crop.mean()).sum() == 91
    assert np.corrcoef(whole, crop)[0, 1] > 0.95

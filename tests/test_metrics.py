"""Texture detail against its definition, by hand and by another implementation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from raypref.images.looks import texture_detail

# OpenCV: cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
KODAK_05 = 4067.716


def test_flat_images_have_none() -> None:
    for size in ((1, 1), (1, 7), (64, 48)):
        assert texture_detail(Image.new("RGB", size, (10, 200, 30))) == 0.0


def test_a_bright_pixel_by_hand() -> None:
    grey = np.zeros((7, 7), dtype=np.uint8)
    grey[3, 3] = 100
    # The Laplacian is -400 at the pixel, 100 at four neighbours, 0 at the other 44: mean 0.
    assert texture_detail(Image.fromarray(grey)) == pytest.approx((400**2 + 4 * 100**2) / 49)


def test_the_border_mirrors_without_repeating_the_edge() -> None:
    # A row 0 10 0: mirrored 10 [0 10 0] 10, Laplacians 20 -20 20.
    row = Image.fromarray(np.array([[0, 10, 0]], dtype=np.uint8))
    assert texture_detail(row) == pytest.approx(np.var([20, -20, 20]))


def test_colours_count_by_their_luma() -> None:
    def stripes(colour: tuple[int, int, int]) -> Image.Image:
        pixels = np.zeros((16, 16, 3), dtype=np.uint8)
        pixels[:, ::2] = colour
        return Image.fromarray(pixels)

    red, green, blue = (
        texture_detail(stripes(colour)) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    )
    assert np.sqrt([red / green, blue / green]) == pytest.approx([299 / 587, 114 / 587], rel=0.02)


def test_blur_lowers_it_on_photographs(shared_data: Path) -> None:
    for file in sorted((shared_data / "photos").glob("kodak_*.jpg"))[:4]:
        with Image.open(file) as image:
            sharp = texture_detail(image)
            assert 10 * texture_detail(image.filter(ImageFilter.GaussianBlur(2))) < sharp


def test_it_is_what_opencv_computes(shared_data: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    for file in sorted((shared_data / "photos").glob("*.jpg"))[::40]:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        grey = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY)
        expected = cv2.Laplacian(grey, cv2.CV_64F).var()
        assert texture_detail(image) == pytest.approx(expected, rel=1e-4)


def test_a_value_measured_with_opencv(shared_data: Path) -> None:
    with Image.open(shared_data / "photos" / "kodak_05.jpg") as image:
        assert texture_detail(image) == pytest.approx(KODAK_05, rel=1e-4)

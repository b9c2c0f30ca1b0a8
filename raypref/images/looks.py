"""What a picture looks like, whatever it shows: its looks, of the whole and of a region."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

LOOKS = {
    "brightness": "mean grey level, 0..1",
    "contrast": "standard deviation of the grey level",
    "saturation": "mean saturation (HSV), 0..1",
    "composition": "how near the middle the detail lies, 0 (corner) .. 1 (centre)",
    "texture": "variance of the Laplacian of the grey levels 0..255: fine structure",
}


def looks(image: Image.Image, region_hw: np.ndarray | None = None) -> dict[str, float]:
    """The looks of an RGB image, or of a region of it.

    Levels and structure are those of the region's pixels; gradients at its edge reach one pixel
    beyond it. The detail's place is the centre of gravity of the grey image's gradient magnitudes.
    Its distance is taken from the middle of the picture, or of the region's bounding box, relative
    to half the diagonal. Without any detail it counts as centred.

    Args:
        image: RGB, any size from 1 x 1.
        region_hw: True where the region is, of the image's size; None: everywhere.

    Returns:
        A value for each of `LOOKS`; NaN for all where the region holds no pixel.
    """
    if region_hw is not None and not region_hw.any():
        return dict.fromkeys(LOOKS, math.nan)
    grey_hw = np.asarray(image.convert("L"), np.float64)
    saturation_hw = np.asarray(image.convert("HSV"), np.float64)[..., 1] / 255
    laplacian_hw, shares_hw = _laplacian(grey_hw), grey_hw / 255
    detail_hw = np.hypot(*(_slope(shares_hw, axis) for axis in (0, 1)))
    if region_hw is not None:
        detail_hw = _boxed(detail_hw * region_hw, region_hw)
        shares_hw, saturation_hw = shares_hw[region_hw], saturation_hw[region_hw]
        laplacian_hw = laplacian_hw[region_hw]
    return {
        "brightness": float(shares_hw.mean()),
        "contrast": float(shares_hw.std()),
        "saturation": float(saturation_hw.mean()),
        "composition": _centred(detail_hw),
        "texture": float(laplacian_hw.var()),
    }


def texture_detail(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey image: how much fine structure there is.

    The grey image is the ITU-R 601 luma 0.299 R + 0.587 G + 0.114 B, rounded to 8 bits (0..255).
    The Laplacian is the four neighbours minus four times the pixel, over a border mirrored
    without repeating the edge pixel. It is what `cv2.Laplacian(grey, cv2.CV_64F).var()` computes
    with OpenCV's defaults (its fixed-point luma rounds single pixels differently). The axis
    "texture detail" of the paper's Figure 2a; it grows with sharpness and with noise alike, and
    with the resolution, so compare images of one size.

    Args:
        image: RGB, any size from 1 x 1.

    Returns:
        Squared grey levels, 0 (flat) to about 1e6; photographs at 512 x 512 lie around 500-5000.
    """
    return float(_laplacian(np.asarray(image.convert("L"), dtype=np.float64)).var())


def _laplacian(grey_hw: np.ndarray) -> np.ndarray:
    padded = np.pad(grey_hw, 1, mode="reflect")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return neighbours - 4.0 * grey_hw


def _centred(detail_hw: np.ndarray) -> float:
    """How near the middle the centre of gravity lies, 0 (corner) .. 1."""
    height, width = detail_hw.shape
    rows, columns = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in (height, width))
    total = detail_hw.sum()
    if not total > 0:
        return 1.0
    y, x = (detail_hw.sum(1) @ rows) / total, (detail_hw.sum(0) @ columns) / total
    return 1.0 - math.hypot(y * height, x * width) / math.hypot(height, width)


def _boxed(values_hw: np.ndarray, region_hw: np.ndarray) -> np.ndarray:
    """The part of the values in the bounding box of the region."""
    rows, columns = (np.flatnonzero(region_hw.any(axis)) for axis in (1, 0))
    return values_hw[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _slope(grey_hw: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(grey_hw, axis=axis) if grey_hw.shape[axis] > 1 else np.zeros_like(grey_hw)

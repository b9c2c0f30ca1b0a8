"""Metrics of one image that need no learned model."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.images.colorfulness import colorfulness
from raypref.images.decode import as_image

PROPERTIES = {
    "brightness": "mean grey level, 0..1",
    "contrast": "standard deviation of the grey level",
    "saturation": "mean saturation (HSV), 0..1",
    "composition": "how near the middle the detail lies, 0 (corner) .. 1 (centre)",
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
    grey_hw = np.asarray(image.convert("L"), dtype=np.float64)
    padded = np.pad(grey_hw, 1, mode="reflect")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return float((neighbours - 4.0 * grey_hw).var())


def properties(image: Image.Image) -> dict[str, float]:
    """Brightness, contrast, saturation and composition of an RGB image (see `PROPERTIES`).

    The detail's place is the centre of gravity of the grey image's gradient magnitudes; its
    distance from the middle is taken relative to half the diagonal. A flat image counts as centred.
    """
    grey_hw = np.asarray(image.convert("L"), np.float64) / 255
    saturation_hw = np.asarray(image.convert("HSV"), np.float64)[..., 1] / 255
    height, width = grey_hw.shape
    rows, columns = (np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in (height, width))
    detail_hw = np.hypot(*(_slope(grey_hw, axis) for axis in (0, 1)))
    total = detail_hw.sum()
    off = 0.0
    if total > 0:
        y, x = (detail_hw.sum(1) @ rows) / total, (detail_hw.sum(0) @ columns) / total
        off = math.hypot(y * height, x * width) / math.hypot(height, width)
    return {
        "brightness": float(grey_hw.mean()),
        "contrast": float(grey_hw.std()),
        "saturation": float(saturation_hw.mean()),
        "composition": 1.0 - off,
    }


def _slope(grey_hw: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(grey_hw, axis=axis) if grey_hw.shape[axis] > 1 else np.zeros_like(grey_hw)


class PixelMetrics:
    """Transform: the metrics that need no model (paper, Figure 2a; colorfulness as in curation)."""

    name = "pixels"
    reads: tuple[str, ...] = ("image",)
    writes = pa.schema([("texture_detail", pa.float32()), ("colorfulness", pa.float32())])
    resources = Resources(workers=0, batch=8)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        for row in rows:
            image = as_image(row["image"])
            row["texture_detail"] = texture_detail(image)
            row["colorfulness"] = colorfulness(image)

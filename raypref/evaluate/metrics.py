"""Metrics of one image that need no learned model."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.config import Resources
from raypref.curate.colorfulness import colorfulness
from raypref.images import as_image
from raypref.rows import Row


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


class PixelMetrics:
    """Stage: the metrics that need no model (paper, Figure 2a; colorfulness as in curation)."""

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

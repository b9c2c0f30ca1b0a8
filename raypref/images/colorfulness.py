"""How colourful a photograph is, as people judge it: the measure of Hasler and Süsstrunk."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image

from raypref.core.config import Section, setting


class ColorConfig(Section):
    """The colorfulness filter."""

    enabled: bool = setting(True, "drop photographs that are not colorful enough")
    variant: Literal["paper", "released"] = setting(
        "paper",
        "what a photograph must exceed: the mean of the set (paper) or its own degraded twin "
        "(released code)",
    )


def colorfulness(image: Image.Image) -> float:
    """The colorfulness of an image.

    With the opponent channels rg = R - G and yb = (R + G)/2 - B it is
    sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

    Source: Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003, section 6;
    population standard deviations.

    Args:
        image: mode RGB; in the pipeline the crop.

    Returns:
        0 for grey images, about 15 for slightly and 80 or more for highly colorful ones; in units
        of the 0..255 channels, so that it does not depend on the image's size.
    """
    assert image.mode == "RGB", f"colorfulness of an image of mode {image.mode}"
    red, green, blue = (np.asarray(band).astype(np.int32) for band in image.split())
    rg_mean, rg_std = _mean_and_std(red - green)
    yb_mean, yb_std = _mean_and_std(red + green - 2 * blue)  # twice yb
    return math.hypot(rg_std, yb_std / 2) + 0.3 * math.hypot(rg_mean, yb_mean / 2)


def _mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """From integer sums: exact, and quicker than floats."""
    count = values.size
    total = int(values.sum(dtype=np.int64))
    squares = int(np.square(values).sum(dtype=np.int64))
    return total / count, math.sqrt(count * squares - total**2) / count

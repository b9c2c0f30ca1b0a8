"""How colourful a photograph is, as people judge it: the measure of Hasler and Süsstrunk."""

from __future__ import annotations

import numpy as np
from PIL import Image

from raypref.config import Section, setting


class ColorConfig(Section):
    """The colorfulness filter: photographs above the mean of the set are kept."""

    enabled: bool = setting(True, "keep only photographs more colorful than the set's mean")


def colorfulness(image: Image.Image) -> float:
    """The colorfulness of an image.

    With the opponent channels rg = R - G and yb = (R + G)/2 - B it is
    sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

    Source: Hasler and Süsstrunk, "Measuring colourfulness in natural images", 2003, section 6;
    population standard deviations.

    Args:
        image: mode RGB; in the pipeline the square crop.

    Returns:
        0 for grey images, about 15 for slightly and 80 or more for highly colorful ones; in units
        of the 0..255 channels, so that it does not depend on the image's size.
    """
    assert image.mode == "RGB", f"colorfulness of an image of mode {image.mode}"
    pixels_HWC = np.asarray(image)
    red, green, blue = np.moveaxis(pixels_HWC, 2, 0).astype(np.float64)
    rg = red - green
    yb = (red + green) / 2 - blue
    spread = np.hypot(rg.std(), yb.std())
    offset = np.hypot(rg.mean(), yb.mean())
    return float(spread + 0.3 * offset)

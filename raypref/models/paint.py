"""Holes filled by diffusers' inpainting pipelines: what they are called with, and putting back.

One polarity everywhere: a mask is 255 where to repaint and 0 where to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from raypref.images.decode import of_unit
from raypref.images.masks import BRIGHT

if TYPE_CHECKING:
    import torch

# OpenCV's Gaussian of 21 pixels, at the side it was published for: its standard deviation and reach
# in shares of the side.
RIM_SIGMA, RIM_RADIUS = 3.5 / 512, 10 / 512


def hole_arguments(
    photographs: Sequence[Image.Image], masks: Sequence[Image.Image], *, images: bool = False
) -> dict[str, Any]:
    """The arguments of a pipeline's call that say what to repaint, and within what.

    Args:
        photographs: RGB, all of one size.
        masks: L, of that size; the pipeline binarises them at 0.5.
        images: whether the pipeline takes images alone, not tensors.
    """
    taken = list if images else pixels
    return {
        "image": taken(photographs),
        "mask_image": taken(masks),
        "height": photographs[0].height,
        "width": photographs[0].width,
    }


def pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Images of one size and mode as diffusers takes them: 0..1, float32 [B, C, H, W]."""
    import torch

    pixels_BHWC = np.stack([np.atleast_3d(np.asarray(image)) for image in images])
    return torch.from_numpy(pixels_BHWC.astype(np.float32) / 255).permute(0, 3, 1, 2)


def at_side(images: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Squares of another size, in pixels a side, as diffusers' pipelines resize their inputs."""
    return [image.resize((side, side), Image.Resampling.LANCZOS) for image in images]


def fitted(pixels_HWC: np.ndarray, size: tuple[int, int], *, rounded: bool) -> Image.Image:
    """Painted pixels as an image of another size, bilinear.

    Args:
        pixels_HWC: RGB, 0..1.
        size: width and height of the result, pixels.
        rounded: resize the image of 8 bits with antialiasing, as trainings load one that is too
            large; else the pixels themselves without, as PixArt's pipeline hands back its own.
    """
    if rounded:
        return of_unit(pixels_HWC).resize(size, Image.Resampling.BILINEAR)
    import torch
    from torch.nn import functional as F

    x_BCHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    y_BCHW = F.interpolate(x_BCHW, size=size[::-1], mode="bilinear", align_corners=False)
    return of_unit(y_BCHW[0].permute(1, 2, 0).numpy())


def paste(painted: Image.Image, photograph: Image.Image, mask: Image.Image) -> Image.Image:
    """The painting where the mask is bright, the photograph elsewhere."""
    repainted = np.asarray(mask)[..., None] >= BRIGHT
    return Image.fromarray(np.where(repainted, np.asarray(painted), np.asarray(photograph)))


def blended(painted: Image.Image, photograph: Image.Image, mask: Image.Image) -> Image.Image:
    """The painting put back with a soft rim, as BrushNet and Follow-Your-Preference evaluate it.

    With m the mask, 0 or 1, it weighs m' = 1 - (1 - m) (1 - blur(m)): all of the hole is painted,
    and around it the photograph comes back within 10 pixels of 512. No pixel further away differs
    from the photograph. The released code rounds the blurred mask to 8 bits and cuts off the
    result's fractions; here the result is rounded, once.

    Args:
        painted: RGB.
        photograph: RGB, of the same size.
        mask: L, of the same size; bright where to repaint.
    """
    from scipy.ndimage import gaussian_filter

    hole_HW = (np.asarray(mask) >= BRIGHT).astype(np.float64)
    side = max(hole_HW.shape)
    radius = max(1, round(RIM_RADIUS * side))
    blurred_HW = gaussian_filter(hole_HW, RIM_SIGMA * side, mode="mirror", radius=radius)
    weight_HW1 = (1 - (1 - hole_HW) * (1 - blurred_HW))[..., None]
    mixed = (1 - weight_HW1) * np.asarray(photograph) + weight_HW1 * np.asarray(painted)
    return Image.fromarray(mixed.round().astype(np.uint8))

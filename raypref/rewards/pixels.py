"""Pixels on their way into a reward model, with a gradient: what image processors do, in torch.

Pixels are RGB in 0..1, [B, 3, H, W]. Resizing follows Pillow's kernels (antialiased, clipped to
0..1) but for its rounding to 256 levels, once per axis: an input of 256 levels differs from the
processor's by up to about one level per pixel, 0.02 after the normalisation of CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raypref.core.config import InputError

MODES = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers of filters that torch has too


def precise(pixels_BCHW: Tensor, device: torch.device) -> Tensor:
    """The pixels on a device, in float32 or better."""
    return pixels_BCHW.to(device, torch.promote_types(pixels_BCHW.dtype, torch.float32))


def unit(features_BD: Tensor) -> Tensor:
    """Embeddings of unit length, in float32 or better."""
    return F.normalize(
        features_BD.to(torch.promote_types(features_BD.dtype, torch.float32)), dim=-1
    )


def resized(pixels_BCHW: Tensor, size: tuple[int, int], *, mode: str = "bicubic") -> Tensor:
    """As Pillow resizes, along rows and then along columns, clipped after each: [B, 3, *size]."""
    for step in ((pixels_BCHW.shape[2], size[1]), size):
        if tuple(pixels_BCHW.shape[2:]) != step:
            pixels_BCHW = F.interpolate(
                pixels_BCHW, step, mode=mode, align_corners=False, antialias=True
            ).clamp(0, 1)
    return pixels_BCHW


def cropped(pixels_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre, with black around it where the image is smaller."""
    (height, width), (high, wide) = pixels_BCHW.shape[2:], size
    top, left = (height - high) // 2, (width - wide) // 2
    return F.pad(pixels_BCHW, (-left, wide - width + left, -top, high - height + top))


def normalised(pixels_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Less the mean, divided by the deviation, per channel."""
    middle, width = (pixels_BCHW.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pixels_BCHW - middle) / width


def squared(pixels_BCHW: Tensor, level: Sequence[int]) -> Tensor:
    """The images in the middle of squares of one colour, as long as the longer side.

    Args:
        pixels_BCHW: images.
        level: the colour, 0 to 255 per channel.
    """
    height, width = pixels_BCHW.shape[2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    colour_C11 = pixels_BCHW.new_tensor(level)[:, None, None] / 255
    around = (left, side - width - left, top, side - height - top)
    return F.pad(pixels_BCHW - colour_C11, around) + colour_C11


def letterboxed(pixels_BCHW: Tensor, side: int) -> Tensor:
    """The longest side becomes `side`, by resampling that is not clipped; black at both ends."""
    scale = side / max(pixels_BCHW.shape[2:])
    if scale != 1:
        size = [max(1, round(length * scale)) for length in pixels_BCHW.shape[2:]]
        pixels_BCHW = F.interpolate(
            pixels_BCHW, size, mode="bicubic", align_corners=False, antialias=True
        )
    down, across = (side - length for length in pixels_BCHW.shape[2:])
    return F.pad(pixels_BCHW, (across // 2, across - across // 2, down // 2, down - down // 2))


def as_processor(processor: Any, pixels_BCHW: Tensor) -> Tensor:
    """What an image processor of transformers makes of the images, as far as CLIP's go.

    Args:
        processor: resizes to a shortest edge or to a size, crops the centre, normalises.
        pixels_BCHW: images.
    """
    if processor.do_resize:
        pixels_BCHW = resized(
            pixels_BCHW, _size(processor.size, pixels_BCHW), mode=_mode(processor)
        )
    if processor.do_center_crop:
        crop = processor.crop_size
        pixels_BCHW = cropped(pixels_BCHW, (crop["height"], crop["width"]))
    return _levels(processor, pixels_BCHW)


def as_patches(processor: Any, pixels_BCHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """What Qwen2-VL's image processor makes of images of one size: [B * patches, values].

    Args:
        processor: normalises and cuts into patches, each repeated in time.
        pixels_BCHW: images.
        grid: patches per column and row, as the processor found them for this size.
    """
    side, merge, times = (
        getattr(processor, name) for name in ("patch_size", "merge_size", "temporal_patch_size")
    )
    size = (grid[0] * side, grid[1] * side)
    if processor.do_resize:
        pixels_BCHW = resized(pixels_BCHW, size, mode=_mode(processor))
    pixels_BCHW = _levels(processor, pixels_BCHW)
    rows, columns = grid[0] // merge, grid[1] // merge
    cut = pixels_BCHW.unflatten(3, (columns, merge, side)).unflatten(2, (rows, merge, side))
    # [B, C, rows, merge, side, columns, merge, side] to [B, rows, columns, merge, merge, C, ...]
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    return cut.expand(*cut.shape[:6], times, side, side).flatten(5).flatten(0, 4)


def _levels(processor: Any, pixels_BCHW: Tensor) -> Tensor:
    """Rescaled from 256 levels and normalised."""
    factor = 255 * processor.rescale_factor if processor.do_rescale else 255.0
    if factor != 1:
        pixels_BCHW = pixels_BCHW * factor
    if not processor.do_normalize:
        return pixels_BCHW
    return normalised(pixels_BCHW, processor.image_mean, processor.image_std)


def _mode(processor: Any) -> str:
    """The filter that it resizes by.

    Raises:
        InputError: torch has none like it.
    """
    number = int(processor.resample)
    if number not in MODES:
        raise InputError(
            f"an image processor resizes by resample={number}, for which there is no gradient; "
            f"{' and '.join(f'{n} ({name})' for n, name in MODES.items())} have one"
        )
    return MODES[number]


def _size(size: Any, pixels_BCHW: Tensor) -> tuple[int, int]:
    """Height and width after resizing."""
    height, width = pixels_BCHW.shape[2:]
    if "shortest_edge" not in size:  # transformers' own kind of mapping
        return size["height"], size["width"]
    edge: int = size["shortest_edge"]
    longer = int(edge * max(height, width) / min(height, width))
    return (edge, longer) if height <= width else (longer, edge)

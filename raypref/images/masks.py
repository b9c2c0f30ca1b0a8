"""Masks of holes in one form, whatever they were: 255 where to repaint, 0 where to keep.

They come as run lengths, as pictures, and as photographs with the hole painted black.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from raypref.images.buckets import Size
from raypref.images.decode import FORMATS, BadImage, ImageConfig, center_crop, decode

REPAINT = 255
BRIGHT = 128  # grey levels from it on are repainted: 0.5, as the pipelines binarise
BAD_MASK = "bad_mask"  # the reason of an entry whose mask cannot be used
MOST_PIXELS = 50_000_000  # of a mask in run lengths
MOST_RUNS = 1_000_000
RUN_CHARACTERS = 2**24  # of run lengths in text

_LARGEST = 2**31  # of a number in run lengths
_NEAR_BLACK = 15  # sum of the three channels below which a pixel counts as painted black
_ALIKE = 24  # mean difference of channels up to which two pixels are the same one, compressed
_COLOURED = 32  # difference of channels from which a pixel has a colour
_COLOURS = 0.005  # share of such pixels that compression alone does not make
_STRETCH = 0.02  # difference of aspects that rounding explains


class BadMask(Exception):  # noqa: N818  (it is data, not an error of the program)
    """This is no usable mask; the message is a sentence for people."""


def from_runs(
    runs: str | Sequence[object], *, height: int, width: int, columns: bool
) -> Image.Image:
    """The mask that run lengths describe.

    Args:
        runs: starts and lengths in turn, `start,length,start,length`, as text with commas or
            spaces, or as a list. Starts count from 1.
        height: of the picture, pixels.
        width: of the picture, pixels.
        columns: pixels are counted down the columns (BrushData), else along the rows (BrushBench).

    Returns:
        Mode L, width x height, 255 within the runs.

    Raises:
        BadMask: it is too large, no numbers, a run is negative, overlaps another one, or leads
            out of the picture.
    """
    if min(height, width) < 1 or height * width > MOST_PIXELS:
        raise BadMask(f"run lengths for {width}x{height} pixels; at most {MOST_PIXELS} are read")
    pairs = _numbers(runs).reshape(-1, 2)
    if (pairs[:, 0] < 1).any() or (pairs[:, 1] < 0).any():
        raise BadMask("a run of negative length, or one that starts before pixel 1")
    pairs = pairs[pairs[:, 1] > 0]
    pairs = pairs[np.argsort(pairs[:, 0])]
    starts, lengths = pairs[:, 0] - 1, pairs[:, 1]
    ends = starts + lengths
    if len(ends) and ends.max() > height * width:
        raise BadMask(f"a run ends at pixel {ends.max()}, of {width}x{height}")
    if (starts[1:] < ends[:-1]).any():
        raise BadMask("two runs overlap")
    # Kept and repainted stretches in turn; what follows the last run is kept.
    befores = np.diff(starts, prepend=0)
    befores[1:] -= lengths[:-1]
    stretches = np.stack([befores, lengths], axis=1).ravel()
    levels = np.tile(np.array([0, REPAINT], np.uint8), len(pairs))
    flat = np.zeros(height * width, np.uint8)
    painted = np.repeat(levels, stretches)
    flat[: len(painted)] = painted
    shape = (width, height) if columns else (height, width)
    pixels = flat.reshape(shape)
    return Image.fromarray(np.ascontiguousarray(pixels.T if columns else pixels))


def _numbers(runs: str | Sequence[object]) -> np.ndarray:
    """An even count of whole numbers, int64."""
    if isinstance(runs, str):
        if len(runs) > RUN_CHARACTERS:
            raise BadMask(f"run lengths of {len(runs)} characters; at most {RUN_CHARACTERS}")
        runs = runs.replace(",", " ").split()
    if not isinstance(runs, list | tuple):
        raise BadMask("run lengths must be text or a list of whole numbers")
    if len(runs) > 2 * MOST_RUNS:
        raise BadMask(f"{len(runs) // 2} runs; at most {MOST_RUNS} are read")
    if len(runs) % 2:
        raise BadMask(f"{len(runs)} run lengths; starts and lengths come in twos")
    numbers = []
    for run in runs:
        if isinstance(run, bool) or not isinstance(run, int | str) or len(str(run)) > 12:
            raise BadMask("run lengths must be whole numbers")
        try:
            number = int(run)
        except ValueError:
            raise BadMask("run lengths must be whole numbers") from None
        if abs(number) > _LARGEST:
            raise BadMask(f"a run length of {number}; at most {_LARGEST}")
        numbers.append(number)
    return np.array(numbers, np.int64)


def from_picture(data: bytes, limits: ImageConfig) -> Image.Image:
    """The mask that a picture shows: grey levels from 128 on are repainted.

    Args:
        data: an encoded image of any size, untrusted.
        limits: as for photographs.

    Returns:
        Mode L, of the picture's size, 255 and 0.

    Raises:
        BadMask: it cannot be decoded, is in colour, partly transparent, or nothing is bright.
    """
    picture = picture_of(data, limits)
    if _coloured(picture) > _COLOURS:
        raise BadMask("the mask has colours; it must be grey: white where to repaint")
    grey = picture.convert("L")
    mask = binarised(grey)
    if not share(mask):
        brightest = grey.getextrema()[1]
        raise BadMask(
            f"no pixel of the mask is bright (from {BRIGHT} of 255 on), the brightest is "
            f"{brightest}; white says where to repaint"
        )
    return mask


def picture_of(data: bytes, limits: ImageConfig) -> Image.Image:
    """A decoded picture, RGB, none of whose pixels is transparent.

    Raises:
        BadMask: it cannot be decoded, or is partly transparent: whether that says repaint or keep
            nobody can tell.
    """
    try:
        picture = decode(data, limits)
    except BadImage as error:
        raise BadMask(str(error)) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = Image.open(BytesIO(data), formats=FORMATS)  # within the limits: it was decoded
        alpha = given.convert("RGBA").getchannel("A") if given.has_transparency_data else None
    if alpha is not None and np.asarray(alpha).min() < 255:
        raise BadMask(
            "the mask is partly transparent; save it without an alpha channel, white where to "
            "repaint"
        )
    return picture


def from_masked(masked: Image.Image, photograph: Image.Image) -> Image.Image:
    """The mask of a photograph whose hole was painted black.

    The hole is what is nearly black (a channel sum below 15). The photograph's own dark pixels
    are no part of it: one that is dark in both is in the hole where the hole lies on both sides of
    it and is nearer than what is surely kept. A picture that is not the photograph at all is a
    mask itself (see `from_picture`).

    Args:
        masked: RGB, of any size with the photograph's aspect.
        photograph: RGB, without the hole.

    Returns:
        Mode L, of the photograph's size, 255 and 0.

    Raises:
        BadMask: of another aspect; nothing is black; or nothing tells the hole from dark pixels.
    """
    from scipy.ndimage import distance_transform_edt

    _check_aspect(masked.size, photograph.size)
    if masked.size != photograph.size:
        masked = masked.resize(photograph.size, Image.Resampling.NEAREST)
    given, original = (np.asarray(image).astype(np.int16) for image in (masked, photograph))
    black, dark = given.sum(-1) < _NEAR_BLACK, original.sum(-1) < _NEAR_BLACK
    if not black.any():
        raise BadMask("no pixel of the masked photograph is black: it has no hole")
    shown = np.abs(given - original).mean(-1) <= _ALIKE
    if not black.all() and shown[~black].mean() < 0.5:
        if _coloured(masked) > _COLOURS:
            raise BadMask("the masked photograph is another picture than the photograph")
        return binarised(masked.convert("L"))
    hole, kept = black & ~dark, ~black
    doubtful = black & dark
    if not hole.any():
        raise BadMask("the photograph is black where its masked copy is: nothing tells the hole")
    if doubtful.any():
        inside = _between(hole, axis=0) | _between(hole, axis=1)
        if kept.any():
            inside &= distance_transform_edt(~hole) < distance_transform_edt(~kept)
        hole |= doubtful & inside
    return _of_bool(hole)


def _between(hole: np.ndarray, axis: int) -> np.ndarray:
    """Pixels with hole on both sides along an axis."""
    before = np.logical_or.accumulate(hole, axis=axis)
    after = np.flip(np.logical_or.accumulate(np.flip(hole, axis), axis=axis), axis)
    return before & after


def _coloured(picture: Image.Image) -> float:
    """The share of pixels whose channels differ."""
    pixels = np.asarray(picture).astype(np.int16)
    return float((np.ptp(pixels, axis=-1) > _COLOURED).mean())


def binarised(grey: Image.Image) -> Image.Image:
    """255 where an image of mode L is bright, else 0."""
    return _of_bool(np.asarray(grey) >= BRIGHT)


def grown(mask: Image.Image, pixels: int) -> Image.Image:
    """The mask with all pixels at most so far from its hole, measured between their centres."""
    if not pixels or not share(mask):
        return mask
    from scipy.ndimage import distance_transform_edt

    return _of_bool(distance_transform_edt(np.asarray(mask) < BRIGHT) <= pixels)


def share(mask: Image.Image) -> float:
    """The hole's share of the picture, 0 to 1."""
    return float((np.asarray(mask) >= BRIGHT).mean())


def cropped_mask(mask: Image.Image, photograph: Size, size: Size) -> Image.Image:
    """The mask's part in the crop of its photograph (`center_crop`), to the pixel.

    Args:
        mask: L, 255 and 0, of any size with the photograph's aspect.
        photograph: width and height of the photograph, pixels.
        size: width and height of the crop, pixels.

    Returns:
        Mode L, of that size, 255 and 0.

    Raises:
        BadMask: of another aspect: it would be stretched.
    """
    _check_aspect(mask.size, photograph)
    nearest = Image.Resampling.NEAREST
    if mask.size != photograph:
        mask = mask.resize(photograph, nearest)
    return center_crop(mask, size, resample=nearest)


def _check_aspect(mask: tuple[int, int], photograph: tuple[int, int]) -> None:
    (width, height), (wide, high) = mask, photograph
    if abs(width * high / (height * wide) - 1) > _STRETCH:
        raise BadMask(f"a mask of {width}x{height} pixels for a photograph of {wide}x{high}")


def _of_bool(hole: np.ndarray) -> Image.Image:
    return Image.fromarray(hole.astype(np.uint8) * REPAINT)

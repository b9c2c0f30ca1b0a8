"""Aspect-ratio buckets: the sizes that crops may have, and which of them suits a photograph."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache

Size = tuple[int, int]  # width and height, pixels


@lru_cache
def bucket_sizes(side: int, step: int, ratio: float) -> tuple[Size, ...]:
    """All buckets: sides that are multiples of a step, and no more pixels than a square has.

    Each width has the largest height that fits, and each height the largest width, as in kohya's
    `make_bucket_resolutions`, which bounds the sides where this bounds their ratio. Those of a
    side of 1024 and a step of 64 are among SDXL's (Podell et al. 2023, appendix I).

    Args:
        side: of the square, a multiple of the step.
        step: pixels.
        ratio: largest ratio of the long to the short side, from 1.

    Returns:
        Width and height of each bucket, the narrowest first; the square is among them.

    >>> bucket_sizes(512, 64, 2.0)
    ((384, 640), (448, 576), (512, 512), (576, 448), (640, 384))
    """
    assert step > 0 and side % step == 0 and ratio >= 1
    found = set()
    for one in range(step, side * side // step + 1, step):
        other = side * side // one // step * step
        if max(one, other) <= ratio * min(one, other):
            found |= {(one, other), (other, one)}
    return tuple(sorted(found, key=lambda size: (Fraction(*size), size)))


def nearest_bucket(size: Size, buckets: Iterable[Size]) -> Size:
    """The bucket whose aspect ratio is nearest, as the logarithms of the two differ.

    Ratios are compared as whole numbers: exact, and the same on every machine. Of two that are
    equally near the one with more pixels counts, of those the wider.

    Args:
        size: of an image.
        buckets: of `bucket_sizes`.
    """
    width, height = size

    def distance(bucket: Size) -> tuple[Fraction, int, int]:
        wide, high = bucket
        one, other = width * high, wide * height
        return Fraction(max(one, other), min(one, other)), -wide * high, -wide

    return min(buckets, key=distance)

"""The transform that reads a hole: photograph and mask in the same square crop."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import Row, reject
from raypref.images.decode import BadImage, ImageConfig, center_square, decode
from raypref.images.masks import (
    BAD_MASK,
    BadMask,
    cropped_mask,
    from_masked,
    from_picture,
    from_runs,
    picture_of,
    share,
)
from raypref.sources.holes import HOLE, KEY, of_holes
from raypref.sources.reading import read
from raypref.sources.store import SourceError, Store, locate


class LoadHole:
    """Transform: the columns of `HOLE` to decoded images.

    It writes `photograph`, mode RGB, and `mask`, mode L, 255 where to repaint and 0 elsewhere; both
    are the centre square of the photograph. A hole that cannot be read, or that lies outside of
    the crop, is dropped with a reason.

    Args:
        size: side of the crop, pixels.
    """

    name = "hole"
    reads: tuple[str, ...] = tuple(HOLE.names)
    writes = pa.schema([("photograph", pa.binary()), ("mask", pa.binary())])
    resources = Resources(workers=0, batch=1)

    def __init__(self, size: int) -> None:
        self.size = size
        self.limits = ImageConfig(size=size)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns or reject."""
        for row in rows:
            try:
                photo = decode(self._bytes(row, "photo_file"), self.limits)
                mask = cropped_mask(self._mask(row, photo), photo.size, (self.size, self.size))
            except (BadImage, SourceError) as error:
                reject(row, self.name, error.reason, of_holes(error.message))
            except BadMask as error:
                reject(row, self.name, BAD_MASK, f"{row['mask_file'] or 'its mask'}: {error}")
            else:
                if not share(mask):
                    said = "no pixel of the square crop lies in the hole"
                    reject(row, self.name, "hole_too_small", said)
                    continue
                row["photograph"] = center_square(photo, self.size)
                row["mask"] = mask

    def _mask(self, row: Row, photo: Image.Image) -> Image.Image:
        """The mask in its own size."""
        if row["mask_form"] == "runs":
            width, height = row["mask_width"], row["mask_height"]
            return from_runs(row["mask_runs"], height=height, width=width, columns=False)
        data = self._bytes(row, "mask_file")
        if row["mask_form"] == "masked":
            return from_masked(picture_of(data, self.limits), photo)
        return from_picture(data, self.limits)

    def _bytes(self, row: Row, column: str) -> bytes:
        return read(_store(row["root"]), row[column], max_bytes=self.limits.max_bytes)


@lru_cache(16)
def _store(root: str) -> Store:
    return locate(root, key=KEY)

"""From an index entry to a photograph: read, decode, crop, measure."""

from __future__ import annotations

import pyarrow as pa
from imagehash import phash
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import Row, content_key, reject
from raypref.images.colorfulness import colorfulness
from raypref.images.decode import (
    IGNORED_PROFILE,
    BadImage,
    ImageConfig,
    as_image,
    cropped,
    decode,
)
from raypref.sources.index import SourceConfig, fetch
from raypref.sources.store import SourceError, Store


class MeasurePhotograph:
    """Transform: the facts of every photograph that need no model. Its pixels are not passed on."""

    name = "photos"
    reads: tuple[str, ...] = ("uri", "member", "column", "size", "caption", "problem")
    writes = pa.schema(
        [
            ("key", pa.string()),
            ("width", pa.int32()),  # of the photograph as a person sees it, before the crop
            ("height", pa.int32()),
            ("colorfulness", pa.float64()),  # of the crop
            ("phash", pa.string()),  # of the crop, 16 hex digits; null unless asked for
            ("profile", pa.string()),  # colour profile other than sRGB that was ignored, else null
        ]
    )
    resources = Resources(workers=0, batch=1)

    def __init__(self, source: SourceConfig, images: ImageConfig) -> None:
        self.source = source
        self.images = images

    def setup(self) -> None:
        """Find the source."""
        self.store = self.source.store()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns or reject."""
        for row in rows:
            problem = _problem(row)
            if problem is not None:
                reject(row, self.name, *problem)
                continue
            photo = read_photograph(row, self.store, self.images, stage=self.name)
            if photo is not None:
                data, image = photo
                row["key"] = content_key(data, row["caption"])
                row["width"], row["height"] = image.size
                row["profile"] = image.info.get(IGNORED_PROFILE)
                crop = cropped(image, self.images)
                row["colorfulness"] = colorfulness(crop)
                row["phash"] = str(phash(crop)) if self.images.near_duplicates else None


class Colorfulness:
    """Transform: how colorful another image is.

    Args:
        image: column of the image.
        column: the new column.
    """

    name = "colorfulness"
    resources = Resources(workers=0, batch=1)

    def __init__(self, image: str, column: str) -> None:
        self.image = image
        self.column = column
        self.reads: tuple[str, ...] = (image,)
        self.writes = pa.schema([(column, pa.float64())])

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        for row in rows:
            row[self.column] = colorfulness(as_image(row[self.image]))


class Crop:
    """Transform: the crop of a photograph (`cropped`), and the size of the whole, in pixels.

    Args:
        source: where the photographs are.
        images: size and limits.
    """

    name = "crop"
    reads: tuple[str, ...] = ("uri", "member", "column", "size", "caption", "key")
    writes = pa.schema(
        [("chosen", pa.binary()), ("whole_width", pa.int32()), ("whole_height", pa.int32())]
    )
    resources = Resources(workers=0, batch=1)

    def __init__(self, source: SourceConfig, images: ImageConfig) -> None:
        self.source = source
        self.images = images

    def setup(self) -> None:
        """Find the source."""
        self.store = self.source.store()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns; a file that changed since it was measured is rejected."""
        for row in rows:
            photo = read_photograph(row, self.store, self.images, stage=self.name)
            if photo is None:
                continue
            data, image = photo
            if content_key(data, row["caption"]) != row["key"]:
                reject(row, self.name, "changed", "the photograph is not the one that was measured")
            else:
                row["chosen"] = cropped(image, self.images)
                row["whole_width"], row["whole_height"] = image.size


def read_photograph(
    row: Row, store: Store, images: ImageConfig, *, stage: str
) -> tuple[bytes, Image.Image] | None:
    """The bytes and the pixels of an entry; None for one that is dropped, with its reason."""
    try:
        data = fetch(row, store, max_bytes=images.max_bytes)
        return data, decode(data, images)
    except (SourceError, BadImage) as problem:
        reject(row, stage, problem.reason, problem.message)
        return None


def _problem(row: Row) -> tuple[str, str] | None:
    """Reason and message of what is wrong with an entry before it is read."""
    if row["problem"] is not None:
        reason, _, message = row["problem"].partition(": ")
        return reason, message
    caption = row["caption"]
    if caption is None or not caption.strip():
        return "no_caption", "the photograph has no caption"
    if "\0" in caption:
        return "bad_caption", "the caption contains a NUL character"
    return None

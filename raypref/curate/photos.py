"""From an index entry to a photograph: read, decode, crop, measure."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from PIL import Image

from raypref.config import Resources
from raypref.curate.colorfulness import colorfulness
from raypref.curate.sources import SourceConfig, SourceError, fetch
from raypref.images import BadImage, ImageConfig, center_square, decode, encode_png
from raypref.rows import Row, content_key, reject


class Measure:
    """Stage: the facts of every photograph that need no model. Its pixels are not passed on."""

    name = "photos"
    reads: tuple[str, ...] = ("uri", "member", "caption")
    writes = pa.schema(
        [
            ("key", pa.string()),
            ("width", pa.int32()),  # of the photograph as a person sees it, before the crop
            ("height", pa.int32()),
            ("colorfulness", pa.float64()),  # of the crop
        ]
    )
    resources = Resources(workers=0, batch=1)

    def __init__(self, source: SourceConfig, images: ImageConfig) -> None:
        self.source = source
        self.images = images

    def setup(self) -> None:
        """Find the source's folder."""
        self.root = self.source.root()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns or reject."""
        for row in rows:
            problem = _caption_problem(row["caption"], self.source.max_caption)
            if problem is not None:
                reject(row, self.name, *problem)
                continue
            photo = _read(row, self.root, self.images, stage=self.name)
            if photo is not None:
                data, image = photo
                row["key"] = content_key(data, row["caption"])
                row["width"], row["height"] = image.size
                row["colorfulness"] = colorfulness(center_square(image, self.images.size))


class Crop:
    """Stage: the square crop of a photograph as PNG."""

    name = "crop"
    reads: tuple[str, ...] = ("uri", "member")
    writes = pa.schema([("chosen", pa.binary())])
    resources = Resources(workers=0, batch=1)

    def __init__(self, source: SourceConfig, images: ImageConfig) -> None:
        self.source = source
        self.images = images

    def setup(self) -> None:
        """Find the source's folder."""
        self.root = self.source.root()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column; a file that changed since it was measured is rejected."""
        for row in rows:
            photo = _read(row, self.root, self.images, stage=self.name)
            if photo is not None:
                row["chosen"] = encode_png(center_square(photo[1], self.images.size))


def _read(
    row: Row, root: Path, images: ImageConfig, *, stage: str
) -> tuple[bytes, Image.Image] | None:
    try:
        data = fetch(row, root, max_bytes=images.max_bytes)
        return data, decode(data, images)
    except (SourceError, BadImage) as problem:
        reject(row, stage, problem.reason, problem.message)
        return None


def _caption_problem(caption: str | None, longest: int) -> tuple[str, str] | None:
    if caption is None or not caption.strip():
        return "no_caption", "the photograph has no caption"
    if len(caption) > longest:
        return "caption_too_long", f"{len(caption)} characters; source.max_caption is {longest}"
    if "\0" in caption:
        return "bad_caption", "the caption contains a NUL character"
    return None

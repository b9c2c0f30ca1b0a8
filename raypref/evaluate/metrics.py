"""Metrics of one image that need no learned model."""

from __future__ import annotations

import pyarrow as pa

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.images.colorfulness import colorfulness
from raypref.images.decode import as_image
from raypref.images.looks import LOOKS, looks, texture_detail


class PixelMetrics:
    """Transform: the metrics that need no model (paper, Figure 2a; colorfulness as in curation)."""

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


class LookMetrics:
    """Transform: the looks of an image; its texture is `texture_detail` and not written again."""

    name = "looks"
    reads: tuple[str, ...] = ("image",)
    writes = pa.schema([(name, pa.float32()) for name in LOOKS if name != "texture"])
    resources = Resources(workers=0, batch=8)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns."""
        for row in rows:
            found = looks(as_image(row["image"]))
            row.update((name, found[name]) for name in self.writes.names)

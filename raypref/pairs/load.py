"""From a label to images: both sides are read, decoded and cropped as photographs are."""

from __future__ import annotations

import hashlib
import json

import pyarrow as pa
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import IMAGE, Row, content_key, reject
from raypref.images.decode import IGNORED_PROFILE, BadImage, center_crop, decode, encode_png
from raypref.pairs.config import PairingConfig
from raypref.pairs.listing import file_of, stores
from raypref.sources.base import Ref
from raypref.sources.pairs import image_bytes
from raypref.sources.store import SourceError

SIDES = ("chosen", "rejected")


class LoadImages:
    """Transform: the crops of a label's images; a label with a broken one is dropped.

    Both have one size: a square, or the bucket nearest to the chosen image.

    Args:
        settings: where the labels and images are, and the rules for images.
    """

    name = "load"
    reads: tuple[str, ...] = ("prompt", "chosen_at", "rejected_at")
    writes = pa.schema(
        [
            ("key", pa.string()),  # sha256 of both images' bytes and the prompt
            ("chosen", IMAGE),
            ("rejected", IMAGE),  # null for a single image
            ("profile", pa.string()),  # colour profile other than sRGB that was ignored, else null
        ]
    )
    resources = Resources(workers=0, batch=1)

    def __init__(self, settings: PairingConfig) -> None:
        self.settings = settings

    def setup(self) -> None:
        """Find the stores."""
        self.stores = stores(self.settings)

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns or drop the row; the message names the file."""
        for row in rows:
            places = [row[f"{side}_at"] for side in SIDES if row[f"{side}_at"] is not None]
            try:
                found = self._crops(places)
            except _Unusable as problem:
                reject(row, self.name, problem.reason, str(problem))
                continue
            if len({png for _, png, _ in found}) < len(found):
                files = " and ".join(map(str, map(file_of, places)))
                reject(row, self.name, "same_image", f"{files} are one image")
                continue
            digests = b"".join(digest for digest, _, _ in found)
            row["key"] = content_key(digests, row["prompt"])
            row["profile"] = next((profile for _, _, profile in found if profile), None)
            for side, (_, png, _) in zip(SIDES, found, strict=False):
                row[side] = {"bytes": png, "path": f"{row['key'][:16]}_{side}.png"}

    def _crops(self, places: list[str]) -> list[tuple[bytes, bytes, str | None]]:
        """Sha256 of each image's bytes, its crop as PNG, an ignored profile."""
        found, size = [], None
        for at in places:
            digest, image = self._read(at)
            size = size or self.settings.images.crop_size(image.size)
            png = encode_png(center_crop(image, size))
            found.append((digest, png, image.info.get(IGNORED_PROFILE)))
        return found

    def _read(self, at: str) -> tuple[bytes, Image.Image]:
        """Sha256 of an image's bytes, and the image."""
        images = self.settings.images
        try:
            data = image_bytes(Ref(*json.loads(at)), *self.stores, max_bytes=images.max_bytes)
            return hashlib.sha256(data).digest(), decode(data, images)
        except (SourceError, BadImage) as problem:
            raise _Unusable(problem.reason, f"{file_of(at)}: {problem.message}") from None


class _Unusable(Exception):  # noqa: N818 - it reads as what happened
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

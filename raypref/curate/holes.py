"""Holes of photographs: which region is repainted, and transforms that find it."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw
from pydantic import model_validator

from raypref.core.config import InputError, Resources, Section, setting
from raypref.core.rows import MASKS, Row, Transform, is_rejected, reject, seed_of
from raypref.curate.saliency import Saliency, SaliencyConfig
from raypref.images.decode import ImageConfig, as_image
from raypref.images.masks import (
    BAD_MASK,
    REPAINT,
    BadMask,
    cropped_mask,
    from_picture,
    from_runs,
    grown,
    share,
)
from raypref.sources.index import SourceConfig, gives_masks
from raypref.sources.reading import read
from raypref.sources.store import SourceError

MASK_BYTES = 2**24  # of an entry's masks in run lengths
MOST_MASKS = 256  # of an entry, among which one is drawn
DRAWS = 16  # of random strokes, until their share of the picture lies within the limits
_WRITES = pa.schema([pa.field("saliency", pa.binary()), pa.field("mask", pa.binary())])


class HolesConfig(Section):
    """Which region of a photograph is repainted."""

    kind: Literal["saliency", "segmentation", "brush"] = setting(
        "saliency",
        "saliency: what U2-Net finds; segmentation: one of the masks that the source has "
        "(source.layout=masked, brushdata), drawn by seed; brush: random strokes, drawn by seed",
        later=True,
    )
    grow: int = setting(0, "pixels of the crop by which the hole is widened", later=True, ge=0)
    min_share: float = setting(
        0.0, "smallest share of the picture that a hole may take", later=True, ge=0, lt=1
    )
    max_share: float = setting(
        1.0, "largest share of the picture that a hole may take", later=True, gt=0, le=1
    )

    @model_validator(mode="after")
    def _some_hole_fits(self) -> Self:
        if self.min_share >= self.max_share:
            raise InputError(
                f"holes.min_share={self.min_share:g}: it must lie below "
                f"holes.max_share={self.max_share:g}"
            )
        return self

    def check(self, source: SourceConfig) -> None:
        """See that the source has the masks that are asked for.

        Raises:
            InputError: its layout has none.
        """
        if self.kind == "segmentation" and not gives_masks(source):
            raise InputError(
                f"holes.kind=segmentation: source.layout={source.layout} has no masks; "
                "source.layout=masked and brushdata have, or take holes.kind=saliency"
            )

    def problem(self, part: float) -> tuple[str, str] | None:
        """Reason and message where a hole that takes a share of the picture is refused."""
        if part == 0:
            return "hole_too_small", "no pixel of the crop lies in the hole"
        if part < self.min_share:
            said = f"the hole takes {part:.1%} of the picture"
            return "hole_too_small", f"{said}, holes.min_share is {self.min_share:g}"
        if part > self.max_share:
            said = f"the hole takes {part:.1%} of the picture"
            return "hole_too_large", f"{said}, holes.max_share is {self.max_share:g}"
        return None


def hole_stage(
    holes: HolesConfig,
    saliency: SaliencyConfig,
    seed: int,
    *,
    source: SourceConfig | None = None,
    images: ImageConfig | None = None,
) -> Transform:
    """The transform that finds the hole of a photograph.

    It reads `key` and what `Crop` writes. It writes two images of the crop's size and
    mode L: `mask`, 255 where to repaint and 0 elsewhere, and `saliency`, what the painter is given
    for it: the soft map of a detector, else the mask itself.

    Args:
        holes: which kind.
        saliency: the detector of holes.kind=saliency.
        seed: of what is drawn.
        source: where masks are read from, of holes.kind=segmentation.
        images: how its photographs are decoded.
    """
    if holes.kind == "brush":
        return BrushHole(holes, seed)
    if holes.kind == "segmentation":
        assert source is not None, "where the masks are"
        return SegmentedHole(holes, seed, source, images or ImageConfig())
    return Saliency(saliency) if holes == HolesConfig() else SalientHole(holes, saliency)


class SalientHole(Saliency):
    """Transform: what `Saliency` finds, grown and within limits of size.

    The soft map is replaced by the mask where the mask was grown: the painter binarises what it is
    given.
    """

    def __init__(self, holes: HolesConfig, config: SaliencyConfig) -> None:
        super().__init__(config)
        self.holes = holes

    def finish(self, rows: list[Row], out: list[np.ndarray]) -> None:
        """Add `saliency` and `mask` to every row, or reject it."""
        super().finish(rows, out)
        for row in rows:
            if not is_rejected(row):
                soft = row["saliency"]
                _settle(row, self.name, self.holes, grown(row["mask"], self.holes.grow))
                if not self.holes.grow and not is_rejected(row):
                    row["saliency"] = soft


class BrushHole:
    """Transform: random strokes, drawn by seed and key, as inpainters are trained with."""

    name = "brush"
    reads: tuple[str, ...] = ("key", "chosen")
    writes = _WRITES
    resources = Resources(workers=0, batch=1)

    def __init__(self, holes: HolesConfig, seed: int) -> None:
        self.holes = holes
        self.seed = seed

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns or reject."""
        for row in rows:
            rng = np.random.default_rng(seed_of(self.seed, "hole", row["key"]))
            size = as_image(row["chosen"]).size
            for _ in range(DRAWS):
                mask = grown(strokes(rng, size), self.holes.grow)
                if not self.holes.problem(share(mask)):
                    break
            _settle(row, self.name, self.holes, mask)


class SegmentedHole:
    """Transform: one of the masks that the source has for a photograph, drawn by seed and key.

    Masks whose share of the picture is refused are passed over while there are others; a mask that
    cannot be read drops the photograph.
    """

    name = "segmentation"
    # The size of the whole photograph is that which `Crop` found: it is not read a second time.
    reads: tuple[str, ...] = ("key", "chosen", "whole_width", "whole_height", *MASKS.names)
    writes = _WRITES
    resources = Resources(workers=0, batch=1)

    def __init__(
        self, holes: HolesConfig, seed: int, source: SourceConfig, images: ImageConfig
    ) -> None:
        self.holes = holes
        self.seed = seed
        self.source = source
        self.images = images

    def setup(self) -> None:
        """Find the source."""
        self.store = self.source.store()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns or reject."""
        for row in rows:
            try:
                self._choose(row, (row["whole_width"], row["whole_height"]))
            except SourceError as error:
                reject(row, self.name, error.reason, error.message)
            except BadMask as error:
                reject(row, self.name, BAD_MASK, str(error))

    def _choose(self, row: Row, size: tuple[int, int]) -> None:
        if row["mask_uri"] is None:
            reject(row, self.name, "no_mask", "the source has no mask for this photograph")
            return
        masks = self._masks(row)
        if not masks:
            reject(row, self.name, "no_mask", "the list of masks of this photograph is empty")
            return
        rng = np.random.default_rng(seed_of(self.seed, "hole", row["key"]))
        width, height = row["mask_width"] or size[0], row["mask_height"] or size[1]
        crops = []
        for number in rng.permutation(len(masks)):
            whole = masks[number]
            if not isinstance(whole, Image.Image):
                whole = from_runs(whole, height=height, width=width, columns=True)
            crop = cropped_mask(whole, size, as_image(row["chosen"]).size)
            crops.append(grown(crop, self.holes.grow))
            if not self.holes.problem(share(crops[-1])):
                break
        fits = not self.holes.problem(share(crops[-1]))
        _settle(row, self.name, self.holes, crops[-1] if fits else crops[0])

    def _masks(self, row: Row) -> list[Any]:
        """What the source has: a picture, which is a file, or a list in run lengths."""
        if row["mask_member"] is None:
            data = read(self.store, row["mask_uri"], max_bytes=self.images.max_bytes)
            return [from_picture(data, self.images)]
        where = {"start": row["mask_member"], "size": row["mask_size"]}
        data = read(self.store, row["mask_uri"], max_bytes=MASK_BYTES, **where)
        try:
            found = json.loads(data)["mask"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise BadMask("the segmentation is no JSON object with a list 'mask'") from None
        if not isinstance(found, list) or len(found) > MOST_MASKS:
            raise BadMask(f"'mask' must be a list of at most {MOST_MASKS} masks")
        return found


def strokes(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A random free-form mask: 1 to 3 zigzag lines with round ends, perhaps mirrored.

    The recipe and its numbers are those of DeepFill v2 (Yu et al. 2019, arXiv 1806.03589), which
    are for 256 x 256 pixels: widths are scaled to the picture, lengths are by its diagonal.

    Args:
        rng: the draws.
        size: width and height, pixels.

    Returns:
        Mode L, 255 and 0.
    """
    width, height = size
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    length = math.hypot(width, height) / 8  # mean, of a piece
    for _ in range(rng.integers(1, 4)):
        pieces = rng.integers(4, 12)
        low = 2 * math.pi / 5 - rng.uniform(0, 2 * math.pi / 15)
        high = 2 * math.pi / 5 + rng.uniform(0, 2 * math.pi / 15)
        angles = rng.uniform(low, high, pieces)
        angles[::2] *= -1  # there and back
        lengths = np.clip(rng.normal(length, length / 2, pieces), 0, 2 * length)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        corners = [(x, y)]
        for angle, far in zip(angles, lengths, strict=True):
            x = min(max(x + far * math.cos(angle), 0), width)
            y = min(max(y + far * math.sin(angle), 0), height)
            corners.append((x, y))
        thick = max(1, round(rng.uniform(12, 40) * min(size) / 256))
        draw.line(corners, fill=REPAINT, width=thick)
        for x, y in corners:
            round_ = (x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2)
            draw.ellipse(round_, fill=REPAINT)
    if rng.random() < 0.5:
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        mask = mask.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return mask


def _settle(row: Row, stage: str, holes: HolesConfig, mask: Image.Image) -> None:
    """Fill the columns, or reject the row for the size of its hole."""
    if problem := holes.problem(share(mask)):
        row.pop("saliency", None)
        row.pop("mask", None)
        reject(row, stage, *problem)
        return
    row["saliency"] = row["mask"] = mask

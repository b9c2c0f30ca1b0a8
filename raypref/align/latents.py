"""What training reads of the pairs: latent moments and prompt embeddings, computed once.

A ledger of single labelled images is one of pairs without rejected images: one side, not two.

The VAE's moments (not a sample) are kept, for the image and its mirror image, so that every epoch
draws fresh latent noise: exactly what encoding again would give, without the VAE. A mirrored
latent is not the latent of the mirrored image, hence both.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from PIL import Image, ImageOps

from raypref.align.cache_config import CacheConfig
from raypref.core.config import InputError
from raypref.core.device import pick_device
from raypref.core.ledger import Ledger
from raypref.core.rows import IMAGE, Row
from raypref.engine.stream import Selection
from raypref.images.buckets import Size
from raypref.images.decode import image_size, open_png
from raypref.models.backbone import BackboneConfig, load_encoder
from raypref.models.families.conditioning import (
    Conditioning,
    packed,
    schema,
    to_row,
)
from raypref.models.families.registry import family

if TYPE_CHECKING:
    from torch import Tensor

UNCONDITIONAL = ""  # id of the extra row that holds the embedding of the empty caption
FLIPS = 2  # as taken, mirrored
READS: tuple[str, ...] = ("prompt", "chosen", "rejected")
SOURCE = "source"  # column of pairs whose hole is in another image than the chosen one


class Images(NamedTuple):
    """What is encoded of a batch: B prompts, and the images of B pairs, or none."""

    prompts: list[str]
    images: list[Image.Image]  # per pair and side, as taken and mirrored
    # For a family that inpaints, as taken and mirrored: B images with a hole, and their masks.
    holes: list[tuple[list[Image.Image], list[Image.Image]]]


class Encoded(NamedTuple):
    """What the text encoder and the autoencoder made of a batch, on the CPU."""

    captions: Conditioning
    moments: Tensor | None  # [B, S (chosen, rejected if there), FLIPS, 2, C, h, w]
    surroundings: Tensor | None  # [B, FLIPS, K, h, w]


class Encode:
    """Transform: images to latent moments, caption to its embedding.

    Args:
        base: the model that encodes.
        config: precision, length of captions, resources.
        side: of square images, in pixels, others being refused; None: any.
        buckets: width and height that images may have instead, pixels. The row of the empty
            caption then says how large latents of the square are.
    """

    name = "encode"

    def __init__(
        self,
        base: BackboneConfig,
        config: CacheConfig,
        *,
        side: int | None = None,
        buckets: Collection[Size] = (),
    ) -> None:
        self.base = base
        self.config = config
        self.side = side
        self.buckets = frozenset(buckets)
        self.no_moments: tuple[bytes, list[int]] | None = None  # of no square image
        self.inpaints = family(base.family).inpaints
        self.reads = (*READS, "mask") if self.inpaints else READS
        around = [("surroundings", pa.binary()), ("surroundings_shape", pa.list_(pa.int64()))]
        self.writes = pa.schema(
            [
                ("moments", pa.binary()),  # float32 [S, FLIPS, 2, C, h, w], S as in `Encoded`
                ("moments_shape", pa.list_(pa.int64())),
                *schema(family(base.family).conditioning),
                *(around if self.inpaints else ()),  # float32 [FLIPS, K, h, w]
            ]
        )
        self.resources = config.resources

    def setup(self) -> None:
        """Load VAE and text encoders."""
        self.encoder = load_encoder(
            self.base,
            device=pick_device(self.resources.num_gpus),
            vae_dtype=self.config.vae_dtype,
            t5_tokens=self.config.t5_tokens,
        )
        if self.buckets:
            self.measure_square()

    def measure_square(self) -> None:
        """See what shape latents of the square have: the family's own VAE says it."""
        assert self.side is not None, "the square has a side"
        of_one = self.encoder.image_moments([Image.new("RGB", (self.side, self.side))])
        self.no_moments = packed(of_one.new_empty((0, FLIPS, *of_one.shape[1:])))

    def shape_of(self, row: Row) -> Size | None:
        """Width and height of the row's images, pixels; None for the empty caption."""
        return image_size(row["chosen"]["bytes"]) if row.get("chosen") is not None else None

    def prepare(self, rows: list[Row]) -> Images:
        """Decode the images; a row without any (the empty caption) shows those of another one.

        So a batch has one shape. Where no row has images, none are encoded. A single labelled
        image is a row without a rejected one.

        Raises:
            InputError: an image has another size than asked for, or than the other one of its
                pair; names the pair.
        """
        pairs = [row for row in rows if row["chosen"] is not None]
        _require_one_kind(pairs)
        shown = [row if row["chosen"] is not None else pairs[0] for row in rows] if pairs else []
        images = [image for row in shown for side in self._sides(row) for image in _both_ways(side)]
        holes = []
        if self.inpaints and shown:
            around, masks = ([*each] for each in zip(*map(self._hole, shown), strict=True))
            mirrored = [*map(ImageOps.mirror, around)], [*map(ImageOps.mirror, masks)]
            holes = [(around, masks), mirrored]
        return Images([row["prompt"] for row in rows], images, holes)

    def _sides(self, row: Row) -> list[Image.Image]:
        """The row's decoded images: chosen and rejected, or the one that was labelled."""
        names = [name for name in ("chosen", "rejected") if row[name] is not None]
        sides = [self._image(row, name) for name in names]
        if len({side.size for side in sides}) > 1:
            sizes = " and ".join(f"{side.width}x{side.height}" for side in sides)
            raise InputError(f"the images of pair '{row['id']}' are {sizes}: they must be alike")
        return sides

    def _image(self, row: Row, name: str) -> Image.Image:
        image = open_png(row[name]["bytes"])
        sizes = self.buckets or {(self.side, self.side)}
        if self.side is not None and image.size not in sizes:
            among = f" with images.bucket_step has {len(sizes)} others" if self.buckets else ""
            raise InputError(
                f"the {name} image of pair '{row['id']}' is {image.width}x{image.height}, and "
                f"images.size={self.side}{among}"
            )
        return image

    def _hole(self, row: Row) -> tuple[Image.Image, Image.Image]:
        """The photograph, which twins have as the chosen image, and the mask of its hole."""
        if row["mask"] is None:
            raise InputError(f"pair '{row['id']}' has no mask, which {self.base.family} reads")
        image = self._image(row, "chosen" if row.get(SOURCE) is None else SOURCE)
        mask = open_png(row["mask"]["bytes"])
        if mask.size != image.size:
            raise InputError(
                f"the mask of pair '{row['id']}' is {mask.width}x{mask.height}, and its image is "
                f"{image.width}x{image.height}"
            )
        return image, mask

    def compute(self, batch: Images) -> Encoded:
        """Conditioning, moments, and what is around the holes."""
        import torch

        cpu = torch.device("cpu"), torch.float32
        captions = self.encoder.text_embeddings(batch.prompts).to(*cpu)
        moments = surroundings = None
        if images := batch.images:
            moments_NRCHW = self.encoder.image_moments(images).to(*cpu)
            count = len(batch.prompts)
            moments = moments_NRCHW.reshape(count, -1, FLIPS, *moments_NRCHW.shape[1:])
        if batch.holes:
            ways = [self.encoder.surroundings(*way) for way in batch.holes]
            surroundings = torch.stack(ways, 1).to(*cpu)
        return Encoded(captions, moments, surroundings)

    def finish(self, rows: list[Row], out: Encoded) -> None:
        """Fill the columns; a row without images gets those of its caption only."""
        for i, row in enumerate(rows):
            row.update(to_row(out.captions[i]))
            if row["chosen"] is None or out.moments is None:
                if self.no_moments is not None:
                    row["moments"], row["moments_shape"] = self.no_moments
                continue
            row["moments"], row["moments_shape"] = packed(out.moments[i])
            if out.surroundings is not None:
                row["surroundings"], row["surroundings_shape"] = packed(out.surroundings[i])


def _require_one_kind(rows: Sequence[Row]) -> None:
    """Raise InputError where some rows have a rejected image and others none."""
    single = [row["id"] for row in rows if row["rejected"] is None]
    if 0 < len(single) < len(rows):
        raise InputError(
            f"pair '{single[0]}' has no rejected image, but others have one: pairs and single "
            "labelled images cannot be trained on together"
        )


def _both_ways(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    return image, ImageOps.mirror(image)


def rows_to_encode(pairs: Ledger, reads: Sequence[str] = READS) -> Selection:
    """The pairs, read in the workers, and one row without images for the empty caption.

    Args:
        pairs: the ledger of pairs.
        reads: what `Encode.reads` says.
    """
    if "mask" in reads and SOURCE in pairs.schema().names:  # twins have none
        reads = (*reads, SOURCE)
    images = {name: pa.array([None], IMAGE) for name in reads if name != "prompt"}
    empty = pa.table({"id": [UNCONDITIONAL], "prompt": [""], **images})
    return Selection(pairs, columns=tuple(empty.schema.names), also=empty)

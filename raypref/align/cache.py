"""What training reads of the pairs: latent moments and prompt embeddings, computed once.

The VAE's moments (not a sample) are kept, for the image and its mirror image, so that every epoch
draws fresh latent noise: exactly what encoding again would give, without the VAE. A mirrored
latent is not the latent of the mirrored image, hence both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from PIL import ImageOps

from raypref.config import Resources, Section
from raypref.device import pick_device
from raypref.diffusion.backbone import BackboneConfig, load_encoder
from raypref.diffusion.families.conditioning import (
    Conditioning,
    from_row,
    packed,
    put,
    room_for,
    schema,
    stack,
    to_row,
    unpacked,
)
from raypref.diffusion.families.registry import family
from raypref.images import open_png
from raypref.ledger import Ledger
from raypref.rows import IMAGE, Row, padded
from raypref.streaming import Selection

if TYPE_CHECKING:
    from torch import Tensor

UNCONDITIONAL = ""  # id of the extra row that holds the embedding of the empty caption
FLIPS = 2  # as taken, mirrored


class CacheConfig(Section):
    """Encoding of the pairs."""

    resources: Resources = Resources(batch=4)


class Encode:
    """Stage: images to latent moments, caption to its embedding."""

    name = "encode"
    reads: tuple[str, ...] = ("prompt", "chosen", "rejected")

    def __init__(self, base: BackboneConfig, config: CacheConfig) -> None:
        self.base = base
        self.writes = pa.schema(
            [
                ("moments", pa.binary()),  # float32 [2 (chosen, rejected), FLIPS, 2, C, h, w]
                ("moments_shape", pa.list_(pa.int64())),
                *schema(family(base.family).conditioning),
            ]
        )
        self.resources = config.resources

    def setup(self) -> None:
        """Load VAE and text encoders."""
        self.encoder = load_encoder(self.base, device=pick_device(self.resources.num_gpus))

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns; a row without images (the empty caption) gets an embedding only."""
        full = padded(rows, self.resources.batch)
        embeddings = self.encoder.text_embeddings([row["prompt"] for row in full])
        for i, row in enumerate(rows):
            row.update(to_row(embeddings[i]))
        pairs = [row for row in rows if row["chosen"] is not None]
        images = [
            image
            for row in padded(pairs, self.resources.batch)
            for png in (row["chosen"]["bytes"], row["rejected"]["bytes"])
            for image in (open_png(png), ImageOps.mirror(open_png(png)))
        ]
        if images:
            moments = self.encoder.image_moments(images)
            per_pair = moments.reshape(-1, 2, FLIPS, *moments.shape[1:])
            for row, values in zip(pairs, per_pair, strict=False):  # copies are left over
                row["moments"], row["moments_shape"] = packed(values)


@dataclass(frozen=True)
class PairData:
    """All pairs as tensors, in the order of their ids, in the host's memory: they may be many."""

    moments: Tensor  # [N, 2 (chosen, rejected), FLIPS, 2 (mean, log-variance), C, h, w]
    embeddings: Conditioning  # N captions
    unconditional: Conditioning  # one, the empty caption

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one image: (C, h, w)."""
        return tuple(self.moments.shape[-3:])

    def prompts(self, indices: Sequence[int], dropped: Sequence[bool]) -> Conditioning:
        """The captions of B pairs; dropped ones become the empty one."""
        return stack(
            [
                self.unconditional if drop else self.embeddings[i]
                for i, drop in zip(indices, dropped, strict=True)
            ]
        )

    def latents(
        self, indices: Sequence[int], flips: Sequence[bool], noise_BCHW: Tensor, *, which: int
    ) -> Tensor:
        """Latents drawn from the moments, [B, C, h, w].

        Args:
            indices: pairs.
            flips: whether to take the mirrored image.
            noise_BCHW: standard normal draws, where and as precise as the latents shall be.
            which: 0 for the chosen image, 1 for the rejected.
        """
        moments = self.moments[list(indices), which, [int(flip) for flip in flips]].to(noise_BCHW)
        mean, log_variance = moments[:, 0], moments[:, 1]
        return mean + (0.5 * log_variance).exp() * noise_BCHW


def rows_to_encode(pairs: Ledger) -> Selection:
    """The pairs, read in the workers, and one row without images for the empty caption."""
    empty = pa.table(
        {
            "id": [UNCONDITIONAL],
            "prompt": [""],
            "chosen": pa.array([None], IMAGE),
            "rejected": pa.array([None], IMAGE),
        }
    )
    return Selection(pairs, columns=tuple(empty.schema.names), also=empty)


def read_pairs(ledger: Ledger, base: BackboneConfig) -> PairData:
    """Load the cache into memory, as the base's family reads it."""
    kind = family(base.family).conditioning
    ids = set(ledger.table(["id"])["id"].to_pylist())
    places = {id_: place for place, id_ in enumerate(sorted(ids - {UNCONDITIONAL}))}
    columns = ["moments", "moments_shape", *schema(kind).names]
    moments: Tensor | None = None
    # Row by row into their place: gathered first they would take twice the memory, and as one
    # Arrow column the captions of SD-3.5 would pass its 2 GiB.
    for row in ledger.rows(["id", *columns]):
        caption = from_row(kind, row)
        if row["id"] == UNCONDITIONAL:
            unconditional = caption
            continue
        own = unpacked(row["moments"], row["moments_shape"])
        if moments is None:
            moments = own.new_empty((len(places), *own.shape))
            captions = room_for(caption, len(places))
        moments[places[row["id"]]] = own
        put(captions, places[row["id"]], caption)
    assert moments is not None, f"{ledger.path} holds no pairs"
    return PairData(moments, captions, unconditional)

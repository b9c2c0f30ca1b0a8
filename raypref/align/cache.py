"""What training reads of the pairs: latent moments and prompt embeddings, computed once.

The VAE's moments (not a sample) are kept, for the image and its mirror image, so that every epoch
draws fresh latent noise: exactly what encoding again would give, without the VAE. A mirrored
latent is not the latent of the mirrored image, hence both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from raypref.config import Resources, Section
from raypref.device import pick_device
from raypref.diffusion.backbone import BackboneConfig, load_encoder
from raypref.diffusion.prompts import Prompts, stack
from raypref.images import open_png
from raypref.ledger import Ledger
from raypref.rows import IMAGE, Row
from raypref.streaming import Selection

if TYPE_CHECKING:
    from torch import Tensor

UNCONDITIONAL = ""  # id of the extra row that holds the embedding of the empty caption
FLIPS = 2  # as taken, mirrored


class CacheConfig(Section):
    """Encoding of the pairs."""

    resources: Resources = Resources(batch=4)


class Encoded(NamedTuple):
    """What encoder and autoencoder made of a batch, float32."""

    moments: np.ndarray | None  # [B, 2 (chosen, rejected), FLIPS, 2, C, h, w]
    sequence_BLD: np.ndarray
    pooled_BP: np.ndarray


class Encode:
    """Transform: images to latent moments, caption to its embedding."""

    name = "encode"
    reads: tuple[str, ...] = ("prompt", "chosen", "rejected")
    writes = pa.schema(
        [
            ("moments", pa.binary()),  # float32 [2 (chosen, rejected), FLIPS, 2, C, h, w]
            ("moments_shape", pa.list_(pa.int64())),
            ("embedding", pa.binary()),  # float32 [L, D]
            ("embedding_shape", pa.list_(pa.int64())),
            ("pooled", pa.binary()),  # float32 [P]; P is 0 in a family that reads none
        ]
    )

    def __init__(self, base: BackboneConfig, config: CacheConfig) -> None:
        self.base = base
        self.resources = config.resources

    def setup(self) -> None:
        """Load VAE and text encoders."""
        self.encoder = load_encoder(self.base, device=pick_device(self.resources.num_gpus))

    def prepare(self, rows: list[Row]) -> tuple[list[str], list[Image.Image]]:
        """The prompts, and of each row four images: chosen, rejected, as taken and mirrored.

        A row without images (the empty caption) shows those of another one: the batch has one
        shape. Without any there is no image.
        """
        pairs = [row for row in rows if row["chosen"] is not None]
        images = (
            [
                image
                for row in rows
                for shown in (row if row["chosen"] is not None else pairs[0],)
                for value in (shown["chosen"], shown["rejected"])
                for image in _both_ways(open_png(value["bytes"]))
            ]
            if pairs
            else []
        )
        return [row["prompt"] for row in rows], images

    def compute(self, batch: tuple[list[str], list[Image.Image]]) -> Encoded:
        """Moments and embeddings."""
        prompts, images = batch
        embeddings = self.encoder.text_embeddings(prompts)
        moments = None
        if images:
            moments_NRCHW = self.encoder.image_moments(images)
            shape = (len(prompts), 2, FLIPS, *moments_NRCHW.shape[1:])
            moments = _array(moments_NRCHW.reshape(shape))
        return Encoded(moments, _array(embeddings.sequence_BLD), _array(embeddings.pooled_BP))

    def finish(self, rows: list[Row], out: Encoded) -> None:
        """Fill the columns; a row without images gets an embedding only."""
        for i, row in enumerate(rows):
            row["embedding"], row["embedding_shape"] = _pack(out.sequence_BLD[i])
            row["pooled"], _ = _pack(out.pooled_BP[i])
            if row["chosen"] is not None:
                assert out.moments is not None
                row["moments"], row["moments_shape"] = _pack(out.moments[i])


def _both_ways(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    return image, ImageOps.mirror(image)


@dataclass(frozen=True)
class PairData:
    """All pairs as tensors, in the order of their ids, in the host's memory: they may be many."""

    moments: Tensor  # [N, 2 (chosen, rejected), FLIPS, 2 (mean, log-variance), C, h, w]
    embeddings: Prompts  # N captions
    unconditional: Prompts  # one, the empty caption

    def __len__(self) -> int:
        return len(self.moments)

    def prompts(self, indices: Sequence[int], dropped: Sequence[bool]) -> Prompts:
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


def read_pairs(ledger: Ledger) -> PairData:
    """Load the cache into memory."""
    ids = set(ledger.table(["id"])["id"].to_pylist())
    places = {id_: place for place, id_ in enumerate(sorted(ids - {UNCONDITIONAL}))}
    columns = ["moments", "moments_shape", "embedding", "embedding_shape", "pooled"]
    pairs: dict[str, Tensor] = {}
    # Row by row into their place: gathered first they would take twice the memory, and as one
    # Arrow column the captions of SD-3.5 would pass its 2 GiB.
    for row in ledger.rows(["id", *columns]):
        sequence_LD = _unpack(row["embedding"], row["embedding_shape"])
        pooled_P = _unpack(row["pooled"], [-1])
        if row["id"] == UNCONDITIONAL:
            unconditional = Prompts(sequence_LD, pooled_P)
            continue
        moments = _unpack(row["moments"], row["moments_shape"])
        for name, value in (("moments", moments), ("text", sequence_LD), ("pooled", pooled_P)):
            if name not in pairs:
                pairs[name] = value.new_empty((len(places), *value.shape))
            pairs[name][places[row["id"]]] = value
    return PairData(pairs["moments"], Prompts(pairs["text"], pairs["pooled"]), unconditional)


def _array(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _pack(values: np.ndarray) -> tuple[bytes, list[int]]:
    return values.tobytes(), list(values.shape)


def _unpack(data: bytes, shape: Sequence[int]) -> Tensor:
    import torch

    values = np.frombuffer(data, dtype=np.float32).copy()
    return torch.from_numpy(values).reshape(tuple(shape))

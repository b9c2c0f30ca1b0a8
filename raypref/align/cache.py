"""What training reads of the pairs: latent moments and prompt embeddings, computed once.

The VAE's moments (not a sample) are kept, for the image and its mirror image, so that every epoch
draws fresh latent noise: exactly what encoding again would give, without the VAE. A mirrored
latent is not the latent of the mirrored image, hence both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import ImageOps

from raypref.config import InputError, Resources, Section
from raypref.device import pick_device
from raypref.diffusion.backbone import BackboneConfig, load_encoder
from raypref.diffusion.prompts import Prompts, stack
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

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns; a row without images (the empty caption) gets an embedding only."""
        full = padded(rows, self.resources.batch)
        embeddings = self.encoder.text_embeddings([row["prompt"] for row in full])
        for i, row in enumerate(rows):
            row["embedding"], row["embedding_shape"] = _pack(embeddings.sequence_BLD[i])
            row["pooled"], _ = _pack(embeddings.pooled_BP[i])
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
                row["moments"], row["moments_shape"] = _pack(values)


@dataclass(frozen=True)
class PairData:
    """All pairs as tensors, in the order of their ids, in the host's memory: they may be many."""

    moments: Tensor  # [N, 2 (chosen, rejected), FLIPS, 2 (mean, log-variance), C, h, w]
    embeddings: Prompts  # N captions
    unconditional: Prompts  # one, the empty caption
    facts: Mapping[str, Tensor] = field(default_factory=dict)  # numbers of the pairs, each [N]

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

    def facts_of(self, indices: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """The numbers of B pairs, each [B], on the device and in the precision of `like`."""
        return {name: values[list(indices)].to(like) for name, values in self.facts.items()}


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


def read_pairs(
    ledger: Ledger, *, pairs: Ledger | None = None, facts: Sequence[str] = ()
) -> PairData:
    """Load encoded pairs into memory.

    Args:
        ledger: the encoded pairs.
        pairs: the pairs themselves; None where there are no facts.
        facts: columns of the pairs, numbers, that an objective reads.

    Raises:
        InputError: the pairs have no such column of numbers.
    """
    ids = set(ledger.table(["id"])["id"].to_pylist())
    places = {id_: place for place, id_ in enumerate(sorted(ids - {UNCONDITIONAL}))}
    columns = ["moments", "moments_shape", "embedding", "embedding_shape", "pooled"]
    found: dict[str, Tensor] = {}
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
            if name not in found:
                found[name] = value.new_empty((len(places), *value.shape))
            found[name][places[row["id"]]] = value
    return PairData(
        found["moments"],
        Prompts(found["text"], found["pooled"]),
        unconditional,
        _facts(pairs, facts, places) if pairs else {},
    )


def _facts(pairs: Ledger, names: Sequence[str], places: Mapping[str, int]) -> dict[str, Tensor]:
    """Columns of the pairs in the order of their ids, float64."""
    import torch

    absent = [name for name in names if name not in pairs.schema().names]
    if absent:
        raise InputError(f"{pairs.path}: the pairs have no column {', '.join(absent)}")
    found = {name: torch.empty(len(places), dtype=torch.float64) for name in names}
    for row in pairs.rows(["id", *names]):
        for name in names:
            if not isinstance(row[name], int | float):
                raise InputError(
                    f"{pairs.path}: {name} of pair '{row['id']}' is {row[name]!r}, not a number"
                )
            found[name][places[row["id"]]] = row[name]
    return found


def _pack(values: Tensor) -> tuple[bytes, list[int]]:
    return values.float().cpu().numpy().tobytes(), list(values.shape)


def _unpack(data: bytes, shape: Sequence[int]) -> Tensor:
    import torch

    values = np.frombuffer(data, dtype=np.float32).copy()
    return torch.from_numpy(values).reshape(tuple(shape))

"""What training reads of the pairs: latent moments and prompt embeddings, computed once.

The VAE's moments (not a sample) are kept, for the image and its mirror image, so that every epoch
draws fresh latent noise: exactly what encoding again would give, without the VAE. A mirrored
latent is not the latent of the mirrored image, hence both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from PIL import Image, ImageOps

from raypref.core.config import InputError, Resources, Section
from raypref.core.device import pick_device
from raypref.core.ledger import Ledger
from raypref.core.rows import IMAGE, Row
from raypref.engine.stream import Selection
from raypref.images.decode import open_png
from raypref.models.backbone import BackboneConfig, load_encoder
from raypref.models.families.conditioning import (
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
from raypref.models.families.registry import family

if TYPE_CHECKING:
    from torch import Tensor

UNCONDITIONAL = ""  # id of the extra row that holds the embedding of the empty caption
FLIPS = 2  # as taken, mirrored
READS: tuple[str, ...] = ("prompt", "chosen", "rejected")


class CacheConfig(Section):
    """Encoding of the pairs."""

    resources: Resources = Resources(batch=4)


class Images(NamedTuple):
    """What is encoded of a batch: B prompts, and the images of B pairs, or none."""

    prompts: list[str]
    images: list[Image.Image]  # per pair chosen and rejected, each as taken and mirrored
    masks: list[Image.Image]  # per pair, for a family that inpaints


class Encoded(NamedTuple):
    """What the text encoder and the autoencoder made of a batch, on the CPU."""

    captions: Conditioning
    moments: Tensor | None  # [B, 2 (chosen, rejected), FLIPS, 2, C, h, w]
    surroundings: Tensor | None  # [B, FLIPS, K, h, w]


class Encode:
    """Transform: images to latent moments, caption to its embedding."""

    name = "encode"

    def __init__(self, base: BackboneConfig, config: CacheConfig) -> None:
        self.base = base
        self.inpaints = family(base.family).inpaints
        self.reads = (*READS, "mask") if self.inpaints else READS
        around = [("surroundings", pa.binary()), ("surroundings_shape", pa.list_(pa.int64()))]
        self.writes = pa.schema(
            [
                ("moments", pa.binary()),  # float32 [2 (chosen, rejected), FLIPS, 2, C, h, w]
                ("moments_shape", pa.list_(pa.int64())),
                *schema(family(base.family).conditioning),
                *(around if self.inpaints else ()),  # float32 [FLIPS, K, h, w]
            ]
        )
        self.resources = config.resources

    def setup(self) -> None:
        """Load VAE and text encoders."""
        self.encoder = load_encoder(self.base, device=pick_device(self.resources.num_gpus))

    def prepare(self, rows: list[Row]) -> Images:
        """Decode the images; a row without any (the empty caption) shows those of another one.

        So a batch has one shape. Where no row has images, none are encoded.
        """
        pairs = [row for row in rows if row["chosen"] is not None]
        shown = [row if row["chosen"] is not None else pairs[0] for row in rows] if pairs else []
        images = [
            image
            for row in shown
            for value in (row["chosen"], row["rejected"])
            for image in _both_ways(open_png(value["bytes"]))
        ]
        masks = [self._mask(row) for row in shown] if self.inpaints else []
        return Images([row["prompt"] for row in rows], images, masks)

    def _mask(self, row: Row) -> Image.Image:
        if row["mask"] is None:
            raise InputError(f"pair '{row['id']}' has no mask, which {self.base.family} reads")
        return open_png(row["mask"]["bytes"])

    def compute(self, batch: Images) -> Encoded:
        """Conditioning, moments, and what is around the masks of the chosen images."""
        import torch

        cpu = torch.device("cpu"), torch.float32
        captions = self.encoder.text_embeddings(batch.prompts).to(*cpu)
        moments = surroundings = None
        if images := batch.images:
            moments_NRCHW = self.encoder.image_moments(images).to(*cpu)
            count = len(batch.prompts)
            moments = moments_NRCHW.reshape(count, 2, FLIPS, *moments_NRCHW.shape[1:])
        if batch.masks:
            flipped = [ImageOps.mirror(mask) for mask in batch.masks]
            sides = (images[:: 2 * FLIPS], batch.masks), (images[1 :: 2 * FLIPS], flipped)
            surroundings = torch.stack([self.encoder.surroundings(*side) for side in sides], 1)
            surroundings = surroundings.to(*cpu)
        return Encoded(captions, moments, surroundings)

    def finish(self, rows: list[Row], out: Encoded) -> None:
        """Fill the columns; a row without images gets those of its caption only."""
        for i, row in enumerate(rows):
            row.update(to_row(out.captions[i]))
            if row["chosen"] is None or out.moments is None:
                continue
            row["moments"], row["moments_shape"] = packed(out.moments[i])
            if out.surroundings is not None:
                row["surroundings"], row["surroundings_shape"] = packed(out.surroundings[i])


def _both_ways(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    return image, ImageOps.mirror(image)


@dataclass(frozen=True)
class PairData:
    """All pairs as tensors, in the order of their ids, in the host's memory: they may be many."""

    moments: Tensor  # [N, 2 (chosen, rejected), FLIPS, 2 (mean, log-variance), C, h, w]
    embeddings: Conditioning  # N captions
    unconditional: Conditioning  # one, the empty caption
    surroundings: Tensor | None = None  # [N, FLIPS, K, h, w], for a family that inpaints
    facts: Mapping[str, Tensor] = field(default_factory=dict)  # numbers of the pairs, each [N]

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one image: (C, h, w)."""
        return tuple(self.moments.shape[-3:])

    def prompts(
        self, indices: Sequence[int], dropped: Sequence[bool], flips: Sequence[bool]
    ) -> Conditioning:
        """The captions of B pairs, dropped ones as the empty one; with what is around their masks.

        Args:
            indices: pairs.
            dropped: whether to take the empty caption.
            flips: whether to take what is around the mirrored mask.
        """
        captions = stack(
            [
                self.unconditional if drop else self.embeddings[i]
                for i, drop in zip(indices, dropped, strict=True)
            ]
        )
        if self.surroundings is None:
            return captions
        around_BKHW = self.surroundings[list(indices), [int(flip) for flip in flips]]
        return replace(captions, surroundings_BKHW=around_BKHW)

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


def rows_to_encode(pairs: Ledger, reads: Sequence[str] = READS) -> Selection:
    """The pairs, read in the workers, and one row without images for the empty caption.

    Args:
        pairs: the ledger of pairs.
        reads: what `Encode.reads` says.
    """
    images = {name: pa.array([None], IMAGE) for name in reads if name != "prompt"}
    empty = pa.table({"id": [UNCONDITIONAL], "prompt": [""], **images})
    return Selection(pairs, columns=tuple(empty.schema.names), also=empty)


def read_pairs(
    ledger: Ledger,
    base: BackboneConfig,
    *,
    pairs: Ledger | None = None,
    facts: Sequence[str] = (),
) -> PairData:
    """Load encoded pairs into memory, as the base's family reads them.

    Args:
        ledger: the encoded pairs.
        base: the model that encoded them.
        pairs: the pairs themselves; None where there are no facts.
        facts: columns of the pairs, numbers, that an objective reads.

    Raises:
        InputError: the pairs have no such column of numbers.
    """
    kind, inpaints = family(base.family).conditioning, family(base.family).inpaints
    ids = set(ledger.table(["id"])["id"].to_pylist())
    places = {id_: place for place, id_ in enumerate(sorted(ids - {UNCONDITIONAL}))}
    own = ["moments", *(["surroundings"] if inpaints else [])]
    columns = [*own, *(f"{name}_shape" for name in own), *schema(kind).names]
    images: dict[str, Tensor] = {}
    # Row by row into their place: gathered first they would take twice the memory, and as one
    # Arrow column the captions of SD-3.5 would pass its 2 GiB.
    for row in ledger.rows(["id", *columns]):
        caption = from_row(kind, row)
        if row["id"] == UNCONDITIONAL:
            unconditional = caption
            continue
        if not images:
            captions = room_for(caption, len(places))
        put(captions, places[row["id"]], caption)
        for name in own:
            value = unpacked(row[name], row[f"{name}_shape"])
            if name not in images:
                images[name] = value.new_empty((len(places), *value.shape))
            images[name][places[row["id"]]] = value
    return PairData(
        images["moments"],
        captions,
        unconditional,
        images.get("surroundings"),
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

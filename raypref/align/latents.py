"""What training reads of the pairs: latent moments and prompt embeddings, computed once.

A ledger of single labelled images is one of pairs without rejected images: one side, not two.

The VAE's moments (not a sample) are kept, for the image and its mirror image, so that every epoch
draws fresh latent noise: exactly what encoding again would give, without the VAE. A mirrored
latent is not the latent of the mirrored image, hence both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from PIL import Image, ImageOps

from raypref.align.cache_config import CacheConfig
from raypref.core.config import InputError
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
        side: of all images, in pixels, others being refused; None: any.
    """

    name = "encode"

    def __init__(
        self, base: BackboneConfig, config: CacheConfig, *, side: int | None = None
    ) -> None:
        self.base = base
        self.config = config
        self.side = side
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

    def prepare(self, rows: list[Row]) -> Images:
        """Decode the images; a row without any (the empty caption) shows those of another one.

        So a batch has one shape. Where no row has images, none are encoded. A single labelled
        image is a row without a rejected one.

        Raises:
            InputError: an image has another size; names the pair.
        """
        pairs = [row for row in rows if row["chosen"] is not None]
        _require_one_kind(pairs)
        shown = [row if row["chosen"] is not None else pairs[0] for row in rows] if pairs else []
        images = [
            image
            for row in shown
            for name in ("chosen", "rejected")
            if row[name] is not None
            for image in _both_ways(self._image(row, name))
        ]
        holes = []
        if self.inpaints and shown:
            around, masks = ([*each] for each in zip(*map(self._hole, shown), strict=True))
            mirrored = [*map(ImageOps.mirror, around)], [*map(ImageOps.mirror, masks)]
            holes = [(around, masks), mirrored]
        return Images([row["prompt"] for row in rows], images, holes)

    def _image(self, row: Row, name: str) -> Image.Image:
        image = open_png(row[name]["bytes"])
        if self.side is not None and image.size != (self.side, self.side):
            raise InputError(
                f"the {name} image of pair '{row['id']}' is {image.width}x{image.height}, and "
                f"images.size={self.side}"
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


@dataclass(frozen=True)
class PairData:
    """All pairs as tensors, in the order of their ids, in the host's memory: they may be many.

    Single labelled images are pairs of one side, prompts alone of none. N rows share M captions;
    where every image of a pair is a row, both rows have the same caption.
    """

    moments: Tensor  # [N, S (chosen, rejected if there), FLIPS, 2 (mean, log-variance), C, h, w]
    embeddings: Conditioning  # M captions
    unconditional: Conditioning  # one, the empty caption
    surroundings: Tensor | None = None  # [M, FLIPS, K, h, w], for a family that inpaints
    facts: Mapping[str, Tensor] = field(default_factory=dict)  # numbers of the pairs, each [N]
    caption_of: Tensor | None = None  # [N], which caption a row has; None: row n has caption n
    texts: tuple[str, ...] = ()  # the M captions as they are written, where rewards read them

    def __len__(self) -> int:
        return len(self.moments)

    @property
    def single(self) -> bool:
        """Whether the rows are single images."""
        return self.moments.shape[1] == 1

    def images(self) -> PairData:
        """Each image as a row of its own, with `score`: 1 for a chosen one, 0 for a rejected one.

        The chosen image of pair n is row 2n. Single images stay as they are. Nothing is copied.
        """
        if self.single:
            return self
        import torch

        count = len(self)
        facts = {name: values.repeat_interleave(2) for name, values in self.facts.items()}
        score_N = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(count)
        return replace(
            self,
            moments=self.moments.flatten(0, 1).unsqueeze(1),
            facts={**facts, "score": score_N},
            caption_of=torch.arange(count).repeat_interleave(2),
        )

    def scores(self) -> tuple[float, float]:
        """The lowest and the highest score of the images."""
        score_N = self.facts["score"]
        return score_N.min().item(), score_N.max().item()

    def only(self, rows: Tensor) -> PairData:
        """Some rows, copied; `rows` are their indices."""
        return replace(
            self,
            moments=self.moments[rows],
            facts={name: values[rows] for name, values in self.facts.items()},
            caption_of=rows if self.caption_of is None else self.caption_of[rows],
        )

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
        places = list(indices)
        if self.caption_of is not None:
            places = self.caption_of[places].tolist()
        captions = stack(
            [
                self.unconditional if drop else self.embeddings[i]
                for i, drop in zip(places, dropped, strict=True)
            ]
        )
        if self.surroundings is None:
            return captions
        around_BKHW = self.surroundings[places, [int(flip) for flip in flips]]
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

        Raises:
            InputError: a rejected image is asked for, but the rows are single images.
        """
        if which >= self.moments.shape[1]:
            raise InputError(
                "the pairs are single labelled images, and this objective compares two images: "
                "set objective to kto with sample=image, rwr or raft"
            )
        moments = self.moments[list(indices), which, [int(flip) for flip in flips]].to(noise_BCHW)
        return moments[:, 0] + (0.5 * moments[:, 1]).exp() * noise_BCHW

    def facts_of(self, indices: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """The numbers of B pairs, each [B], on the device and in the precision of `like`."""
        return {name: values[list(indices)].to(like) for name, values in self.facts.items()}


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


def read_pairs(
    ledger: Ledger,
    base: BackboneConfig,
    *,
    pairs: Ledger | None = None,
    facts: Sequence[str] = (),
    scores: bool = False,
    texts: bool = False,
) -> PairData:
    """Load encoded pairs into memory, as the base's family reads them.

    Args:
        ledger: the encoded pairs.
        base: the model that encoded them.
        pairs: the pairs themselves; None where no columns are read.
        facts: columns of numbers that an objective reads; `prompt` is one number per prompt.
        scores: whether to read the `score` too where the pairs are single labelled images.
        texts: whether to read the prompts as they are written.

    Raises:
        InputError: the pairs have no such column of numbers, or only some have a rejected image.
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
            if len(value) != len(images[name][0]):
                raise InputError(
                    f"{ledger.path}: pair '{row['id']}' has {len(value)} images, others have "
                    f"{len(images[name][0])}: pairs and single labelled images cannot be trained "
                    "on together"
                )
            images[name][places[row["id"]]] = value
    found = PairData(images["moments"], captions, unconditional, images.get("surroundings"))
    names = list(dict.fromkeys([*facts, *(["score"] if scores and found.single else [])]))
    if pairs and texts:
        named = {row["id"]: row["prompt"] for row in pairs.rows(["id", "prompt"])}
        found = replace(found, texts=tuple(named[id_] for id_ in places))
    return replace(found, facts=_facts(pairs, names, places)) if pairs and names else found


def _facts(pairs: Ledger, names: Sequence[str], places: Mapping[str, int]) -> dict[str, Tensor]:
    """Columns of the pairs in the order of their ids, float64."""
    import torch

    absent = [name for name in names if name not in pairs.schema().names]
    if absent:
        raise InputError(f"{pairs.path}: the pairs have no column {', '.join(absent)}")
    found = {name: torch.empty(len(places), dtype=torch.float64) for name in names}
    prompts: dict[str, int] = {}
    for row in pairs.rows(["id", *names]):
        for name in names:
            value = row[name]
            if name == "prompt":
                value = prompts.setdefault(value, len(prompts))
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(
                    f"{pairs.path}: {name} of pair '{row['id']}' is {value!r}, not a number"
                )
            found[name][places[row["id"]]] = value
    return found

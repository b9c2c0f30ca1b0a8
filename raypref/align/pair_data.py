"""All encoded pairs of a training in memory, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from raypref.align.latents import UNCONDITIONAL
from raypref.core.config import InputError
from raypref.core.ledger import Ledger
from raypref.models.backbone import BackboneConfig
from raypref.models.families.conditioning import (
    Conditioning,
    from_row,
    put,
    room_for,
    schema,
    stack,
    unpacked,
)
from raypref.models.families.registry import family

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairData:
    """All pairs as tensors, in the order of their ids, in the host's memory: they may be many.

    Single labelled images are pairs of one side, prompts alone of none. N rows share M captions;
    where every image of a pair is a row, both rows have the same caption.

    Where rows are of several sizes (`images.bucket_step`), `grids` says which, and h and w are one
    dimension of moments and surroundings, row by row of the grid, padded to the largest. What is
    asked for at once must then be of one size: `by_shape` says which rows are.
    """

    moments: Tensor  # [N, S (chosen, rejected if there), FLIPS, 2 (mean, log-variance), C, h, w]
    embeddings: Conditioning  # M captions
    unconditional: Conditioning  # one, the empty caption
    surroundings: Tensor | None = None  # [M, FLIPS, K, h, w], for a family that inpaints
    facts: Mapping[str, Tensor] = field(default_factory=dict)  # numbers of the pairs, each [N]
    caption_of: Tensor | None = None  # [N], which caption a row has; None: row n has caption n
    texts: tuple[str, ...] = ()  # the M captions as they are written, where rewards read them
    grids: Tensor | None = None  # [N, 2], h and w of each row; None: all have those of `moments`
    # (C, h, w) of images that trainings draw of prompts, where stored ones are no squares.
    square: tuple[int, ...] | None = None

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
            grids=None if self.grids is None else self.grids.repeat_interleave(2, dim=0),
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
            grids=None if self.grids is None else self.grids[rows],
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of an image that a training draws of a prompt, (C, h, w)."""
        return self.square or tuple(self.moments.shape[-3:])

    def shape_of(self, indices: Sequence[int]) -> tuple[int, ...]:
        """Of the latents of rows of one size, (C, h, w)."""
        if self.grids is None:
            return tuple(self.moments.shape[-3:])
        [(h, w)] = {(h, w) for h, w in self.grids[list(indices)].tolist()}
        return self.moments.shape[-2], h, w

    def by_shape(self, indices: Sequence[int]) -> list[list[int]]:
        """Which of some rows are of one size: positions in `indices`, in order.

        Sizes come in the order in which they occur first.
        """
        if self.grids is None:
            return [[*range(len(indices))]]
        found: dict[tuple[int, int], list[int]] = {}
        for position, (h, w) in enumerate(self.grids[list(indices)].tolist()):
            found.setdefault((h, w), []).append(position)
        return [*found.values()]

    def prompts(
        self, indices: Sequence[int], dropped: Sequence[bool], flips: Sequence[bool]
    ) -> Conditioning:
        """The captions of B pairs, dropped ones as the empty one; with what is around their masks.

        Args:
            indices: pairs, of one size for a family that inpaints.
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
        around = self.surroundings[places, [int(flip) for flip in flips]]
        around_BKHW = self._unpadded(around, indices)
        return replace(captions, surroundings_BKHW=around_BKHW)

    def latents(
        self, indices: Sequence[int], flips: Sequence[bool], noise_BCHW: Tensor, *, which: int
    ) -> Tensor:
        """Latents drawn from the moments, [B, C, h, w].

        Args:
            indices: pairs of one size.
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
        moments = self.moments[list(indices), which, [int(flip) for flip in flips]]
        moments = self._unpadded(moments, indices).to(noise_BCHW)
        return moments[:, 0] + (0.5 * moments[:, 1]).exp() * noise_BCHW

    def _unpadded(self, values: Tensor, indices: Sequence[int]) -> Tensor:
        """What was read of rows of one size, with h and w as dimensions."""
        if self.grids is None:
            return values
        h, w = self.shape_of(indices)[1:]
        return values[..., : h * w].unflatten(-1, (h, w))

    def facts_of(self, indices: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """The numbers of B pairs, each [B], on the device and in the precision of `like`."""
        return {name: values[list(indices)].to(like) for name, values in self.facts.items()}


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
    import torch

    kind, inpaints = family(base.family).conditioning, family(base.family).inpaints
    shapes = _shapes(ledger)
    square = shapes.pop(UNCONDITIONAL)
    places = {id_: place for place, id_ in enumerate(sorted(shapes))}
    sizes = {shape[-2:] for shape in shapes.values()}
    several, most = len(sizes) > 1, max(h * w for h, w in sizes)
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
            if several:
                value = value.flatten(-2)
            if name not in images:
                shape = (*value.shape[:-1], most if several else value.shape[-1])
                images[name] = value.new_zeros((len(places), *shape))
            if len(value) != len(images[name][0]):
                raise InputError(
                    f"{ledger.path}: pair '{row['id']}' has {len(value)} images, others have "
                    f"{len(images[name][0])}: pairs and single labelled images cannot be trained "
                    "on together"
                )
            images[name][places[row["id"]], ..., : value.shape[-1]] = value
    found = PairData(
        images["moments"],
        captions,
        unconditional,
        images.get("surroundings"),
        grids=torch.tensor([shapes[id_][-2:] for id_ in places]) if several else None,
        square=square[-3:] or None,
    )
    names = list(dict.fromkeys([*facts, *(["score"] if scores and found.single else [])]))
    if pairs and texts:
        named = {row["id"]: row["prompt"] for row in pairs.rows(["id", "prompt"])}
        found = replace(found, texts=tuple(named[id_] for id_ in places))
    return replace(found, facts=_facts(pairs, names, places)) if pairs and names else found


def _shapes(ledger: Ledger) -> dict[str, tuple[int, ...]]:
    """The shape of each row's moments by its id; () where it has none."""
    each: dict[tuple[int, ...], tuple[int, ...]] = {}  # kept once: there are few
    found = {}
    for row in ledger.rows(["id", "moments_shape"]):
        shape = tuple(row["moments_shape"] or ())
        found[row["id"]] = each.setdefault(shape, shape)
    return found


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

"""Soups: weighted sums of LoRA updates, as `0.5 * A + 0.5 * B` in settings.

The sum is of the updates B A of each layer, not of A and of B: so it is exact, and its rank is the
sum of the ranks (model soups, arXiv 2203.05482; of rewards, rewarded soups, arXiv 2306.04488).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from raypref.core.config import InputError

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTED = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*(\S.*?)\s*")


class Term(NamedTuple):
    """One LoRA of a soup."""

    weight: float
    ref: str  # a folder, a file, a hub id, or a name that the caller knows


def terms_of(text: str, *, key: str) -> list[Term]:
    """The LoRAs of a soup, in order.

    Args:
        text: `REF`, `WEIGHT * REF`, or several of them joined by ` + `.
        key: the setting it comes from, for the error.

    Raises:
        InputError: a part is no LoRA, or a weight is no number.
    """
    found = []
    for part in text.split(" + "):
        weighted = _WEIGHTED.fullmatch(part)
        weight, ref = (float(weighted[1]), weighted[2]) if weighted else (1.0, part.strip())
        if not ref or "*" in ref or not math.isfinite(weight):
            raise InputError(
                f"{key}: '{part.strip()}' is not WEIGHT * LORA; write a soup as '0.5 * A + 0.5 * B'"
            )
        found.append(Term(weight, ref))
    return found


def is_soup(text: str) -> bool:
    """Whether a setting names more than one LoRA as it is."""
    return " + " in text or "*" in text


def soup_text(terms: Sequence[Term]) -> str:
    """The text that `terms_of` reads as these terms."""
    return " + ".join(f"{term.weight!r} * {term.ref}" for term in terms)


def stacked(weighted: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """One LoRA whose update is the weighted sum of others' updates.

    Args:
        weighted: weights, and LoRAs by peft's key with alpha / rank folded into B.

    Returns:
        By peft's key: A [sum of ranks, in] and B [out, sum of ranks] for every layer of any of
        them. A LoRA without a layer adds zeros there, so that all layers have one rank.

    Raises:
        InputError: two LoRAs have one layer in different sizes.
    """
    import torch

    parts: dict[str, list[Tensor]] = {}
    shapes: dict[str, Tensor] = {}
    for _, values in weighted:
        for name, value in values.items():
            down = ".lora_A." in name
            same = shapes.setdefault(name, value)
            if same.shape[int(down)] != value.shape[int(down)]:
                raise InputError(f"the LoRAs of a soup are for different models: {name} differs")
    for weight, values in weighted:
        rank = next(len(value) for name, value in values.items() if ".lora_A." in name)
        for name, like in shapes.items():
            down = ".lora_A." in name
            size = (rank, like.shape[1]) if down else (like.shape[0], rank)
            value = values.get(name, like.new_zeros(size))
            parts.setdefault(name, []).append(value if down else value * weight)
    return {n: torch.cat(own, dim=0 if ".lora_A." in n else 1) for n, own in parts.items()}


def read_soup(text: str, *, key: str, component: str) -> dict[str, Tensor]:
    """The sum of LoRAs that lie where a soup says, as `stacked` gives it.

    Args:
        text: as of `terms_of`; names are folders, files or hub ids.
        key: the setting it comes from, for errors.
        component: the network they belong to, `unet` or `transformer`.
    """
    from raypref.models.lora_formats import read_lora

    return stacked(
        [
            (term.weight, read_lora(term.ref, key=key, component=component).values)
            for term in terms_of(text, key=key)
        ]
    )


def write_soup(text: str, *, key: str, component: str, folder: str) -> None:
    """Write a soup as one LoRA file, where `pipe.load_lora_weights(folder)` finds it."""
    from raypref.models import lora
    from raypref.models.lora_config import LoraConfig

    values = read_soup(text, key=key, component=component)
    rank = next(len(value) for name, value in values.items() if ".lora_A." in name)
    lora.save(values, LoraConfig(rank=rank, alpha=rank), folder=folder, component=component)

"""Images that a policy drew, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from raypref.align.paths import Path
from raypref.models.families.conditioning import Conditioning


class RolledOut(NamedTuple):
    """N images as a solver left them."""

    latents_NCHW: Tensor
    path: Path | None = None  # of a stochastic solver, where its steps are trained on


class RolloutBlock(NamedTuple):
    """The images of one rank, groups one after another."""

    latents_NCHW: Tensor
    prompts: Conditioning  # N
    unconditional: Conditioning  # N
    scores: Mapping[str, Tensor]  # per reward that is trained on, float64 [N]; NaN: none
    reward_N: Tensor  # float64; where a score is missing, the mean of the group
    advantage_N: Tensor  # float64
    facts: Mapping[str, Tensor]  # what is reported of each image, float64 [N]
    group: int
    path: Path | None = None

    def facts_of(self, images: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """The numbers of some images, on the device and in the precision of `like`."""
        named = {"reward": self.reward_N, "advantage": self.advantage_N, **self.facts}
        return {name: values[list(images)].to(like) for name, values in named.items()}

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

    def group_means(self, images: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """Numbers of the groups of some images, each [G]: means over the images of a group.

        For objectives that train on some images of a group and report all. Of the advantage, whose
        mean says nothing, it is the mean size.

        Args:
            images: positions of whole groups, one after another.
            like: tells device and precision.
        """
        facts = self.facts_of(images, like)
        facts["advantage"] = facts["advantage"].abs()
        return {name: values.view(-1, self.group).mean(1) for name, values in facts.items()}

    def best_and_worst(self, images: Sequence[int]) -> tuple[list[int], list[int], Tensor]:
        """Positions of the best and the worst image of each group by reward, the first of equals.

        Args:
            images: positions of whole groups, one after another.

        Returns:
            Both, one per group, and whether their rewards differ, bool [G].
        """
        reward_NG = self.reward_N[[*images]].view(-1, self.group)
        firsts = range(0, len(images), self.group)
        best, worst = (
            [images[first + int(place)] for first, place in zip(firsts, places, strict=True)]
            for places in (reward_NG.argmax(1), reward_NG.argmin(1))
        )
        return best, worst, reward_NG.amax(1) > reward_NG.amin(1)

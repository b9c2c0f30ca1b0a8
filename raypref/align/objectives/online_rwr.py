"""Reward-weighted regression online: the denoising error of the policy's images, weighted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.decoupled import DecoupledConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.blocks import RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser


class OnlineRWR(DecoupledConfig):
    """weight * error + kl |learner - reference|^2.

    The weight is exp(advantage / temperature) / Z, where Z makes the weights of a group 1 on
    average, or 1 where the reward reaches the cutoff and 0 elsewhere: RWR and its sparse form, with
    which Black et al. 2024 (arXiv 2305.13301) compare DDPO. With `advantage=mean` the first is
    exp(reward / temperature) / Z, in units of the reward; the default divides by the group's
    deviation, so that one temperature does for any reward. No weight is negative: an image is
    never learned away from.
    """

    facts: ClassVar[tuple[str, ...]] = ("weight",)

    objective: Literal["online_rwr"] = setting(
        "online_rwr", "reward-weighted regression on the policy's images"
    )
    weighting: Literal["exponential", "cutoff"] = setting(
        "exponential", "an image's weight: exp(advantage/temperature)/Z, or 1 from the cutoff on"
    )
    temperature: float = setting(
        1.0, "in units of the advantage; smaller takes the best images alone", gt=0
    )
    cutoff: float = setting(0.5, "smallest reward with a weight, where the weighting is cutoff")

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """Noised images with their weights."""
        samples = super().samples(denoiser, block, images, generators)
        which = [*images]
        if self.weighting == "exponential":
            advantage_NG = block.advantage_N[which].view(-1, self.group)
            weight = (advantage_NG / self.temperature).softmax(1).flatten() * self.group
        else:
            weight = (block.reward_N[which] >= self.cutoff).to(block.reward_N.dtype)
        weight_B = weight.repeat(self.timesteps).to(samples.sides[0].x_BCHW)
        return samples._replace(facts={**samples.facts, "weight": weight_B})

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,), weight_B = sides, facts["weight"]
        return self.held(weight_B * image.error, image), {"weight": weight_B}

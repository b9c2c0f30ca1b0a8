"""Online DPO: the best against the worst image of a prompt, as the policy draws them now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.decoupled import DecoupledConfig
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.blocks import RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser


class OnlineDPO(DecoupledConfig, PairwiseConfig):
    """-log sigmoid(logit) of the group's best and worst image by reward; 0 where all are equal.

    Guo et al. 2024 (arXiv 2402.04792) on language models: pairs of the current policy, labelled by
    a judge, and DPO's loss on them. The loss is Diffusion-DPO's (arXiv 2311.12908): both images
    have one noise and one timestep, those of the group's first image. A group of 2 is the paper's;
    of more, best against worst is ours. A sample is a pair: `batch` counts pairs, prompts times
    timesteps. With `kl` the mean squared distance to the reference on both images is added.
    """

    sides: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    facts: ClassVar[tuple[str, ...]] = ("decided",)
    against: ClassVar[str] = "ref"

    objective: Literal["online_dpo"] = setting(
        "online_dpo", "Diffusion-DPO on the policy's best and worst image per prompt"
    )
    lr: float = setting(1e-4, "learning rate of AdamW", gt=0)
    advantage: Literal["rank"] = setting(
        "rank", "reward to advantage: rank within the group; it says which images are compared"
    )

    @property
    def samples_per_prompt(self) -> int:
        """A pair of images at `timesteps` timesteps."""
        return self.timesteps

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """Best and worst image of each group; what is reported is the group's mean."""
        from raypref.align import noising, online

        firsts = range(0, len(images), self.group)
        shape = tuple(block.latents_NCHW.shape[1:])
        timesteps, noise = noising.timesteps_and_noise(
            denoiser, shape, [generators[first] for first in firsts], times=self.timesteps
        )
        best, worst, decided_N = block.best_and_worst(images)
        sides = [best * self.timesteps, worst * self.timesteps]
        samples = online.at(denoiser, block, sides, timesteps, noise)
        like = samples.sides[0].x_BCHW
        means = {**block.group_means(images, like), "decided": decided_N.to(like)}
        return samples._replace(
            facts={name: values.repeat(self.timesteps) for name, values in means.items()}
        )

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        loss_B = -facts["decided"] * F.logsigmoid(logit)
        if self.kl:
            loss_B = loss_B + self.kl * (sides[0].distance + sides[1].distance) / 2
        return loss_B, metrics | {"decided": facts["decided"]}

"""D3PO: DPO on single steps of two images of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.coupled import CoupledConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.blocks import RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser


class D3PO(CoupledConfig):
    """-log sigmoid(beta (clip(l_chosen) - clip(l_rejected))); 0 where rewards are equal.

    l is the log-likelihood of a step under the learner less that under the reference, clipped to
    log(1 - eps) .. log(1 + eps). Yang et al. 2024 (arXiv 2311.13231): two images of a prompt from
    one start noise, of which the better one by reward is chosen; all its steps count as better.
    Of a larger `group` best and worst image are compared; this is ours. Defaults are those of the
    released code. A sample is a pair at one step: `batch` counts pairs, prompts times `timesteps`.
    """

    sides: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    facts: ClassVar[tuple[str, ...]] = ("kappa", "decided")
    reads_policy: ClassVar[bool] = False
    against: ClassVar[str] = "ref"

    objective: Literal["d3po"] = setting("d3po", "D3PO: DPO on steps of two images of a prompt")
    beta: float = setting(0.1, "weight of the log-ratios", gt=0)
    eps: float = setting(0.1, "how far a ratio may move from 1 with a gradient", gt=0, lt=1)
    group: int = setting(2, "images per prompt; the best is compared with the worst", ge=2)
    shared_start: bool = setting(
        True, "start all images of a prompt from one noise, so that they differ by their paths"
    )
    advantage: Literal["rank"] = setting(
        "rank", "reward to advantage: rank within the group; it says which images are compared"
    )
    rollout_steps: int = setting(20, "solver steps of a rollout", ge=2, le=1000)
    guidance: float = setting(5.0, "classifier-free guidance of policy and learner; 1: none", ge=1)
    lr: float = setting(3e-5, "learning rate of AdamW", gt=0)

    @property
    def samples_per_prompt(self) -> int:
        """A pair of images at `timesteps` steps."""
        return self.timesteps

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """Best and worst image of each group at the same steps; reported are the group's means.

        The steps are drawn from the generator of the group's first image.
        """
        from raypref.align.trajectories import drawn_steps, path_samples

        best, worst, decided_N = block.best_and_worst(images)
        firsts = [generators[first] for first in range(0, len(images), self.group)]
        steps_KN = drawn_steps(firsts, self.timesteps, of=self.noisy_steps)
        samples = path_samples(block, [best, worst], steps_KN, guidance=self.guidance)
        like = samples.sides[0].x_BCHW
        means = {**block.group_means(images, like), "decided": decided_N.to(like)}
        repeated = {name: values.repeat(self.timesteps) for name, values in means.items()}
        return samples._replace(facts={**samples.facts, **repeated})

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import math

        import torch.nn.functional as F

        low, high = math.log(1 - self.eps), math.log(1 + self.eps)
        chosen_B, rejected_B = (self.log_ratio(side.gap, facts, side) for side in sides)
        logit_B = self.beta * (chosen_B.clamp(low, high) - rejected_B.clamp(low, high))
        loss_B = -facts["decided"] * F.logsigmoid(logit_B)
        for side in sides:
            loss_B = self.held(loss_B, facts, side)
        return loss_B, {
            "diff": logit_B.detach(),
            "implicit_accuracy": (logit_B > 0).to(logit_B.dtype),
            "decided": facts["decided"],
        }

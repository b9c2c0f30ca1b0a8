"""DPOK: the policy gradient on the steps of denoising, held to the pretrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.coupled import CoupledConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class DPOK(CoupledConfig):
    """-A clip(ratio) + kl |prediction - reference's|^2.

    Fan et al. 2023 (arXiv 2305.16381). Where the ratio is out of its range a step has no gradient,
    whatever the sign of A, as in the released code; PPO keeps one that leads back. The distance to
    the reference is taken between predictions, as released; `kl_of=step` is the paper's bound. `kl`
    is the paper's 0.01 divided by its weight of the reward, 10. In place of its value function,
    learned beside the model, stands the mean reward of the group (`advantage=mean`).
    """

    objective: Literal["dpok"] = setting("dpok", "DPOK: DDPO with a KL penalty")
    clip_range: float = setting(1e-4, "how far the ratio may move from 1 with a gradient", gt=0)
    advantage: Literal["group", "mean", "rank", "win_rate", "batch", "prompt"] = setting(
        "mean", "reward to advantage: less the group's mean; or as in other trainings"
    )
    kl: float = setting(0.001, "weight of the distance to the reference (kl_of); 0: none", ge=0)
    kl_of: Literal["step", "prediction"] = setting(
        "prediction",
        "distance to the reference: the KL divergence of the step, or the squared distance of the "
        "predictions",
    )
    rollout_steps: int = setting(50, "solver steps of a rollout", ge=2, le=1000)
    guidance: float = setting(7.5, "classifier-free guidance of policy and learner; 1: none", ge=1)
    lr: float = setting(1e-5, "learning rate of AdamW", gt=0)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,) = sides
        ratio_B = self.log_ratio(image.policy_gap, facts, image).exp()
        near_B = ratio_B.clamp(1 - self.clip_range, 1 + self.clip_range)
        metrics = {
            "ratio": ratio_B.detach(),
            "clipped": (near_B != ratio_B).to(ratio_B.dtype),
        }
        return self.held(-facts["advantage"] * near_B, facts, image), metrics

"""DDPO: the policy gradient on the steps of denoising."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from raypref.align.config import Metrics
from raypref.align.objectives.coupled import CoupledConfig, ppo_loss
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class DDPO(CoupledConfig):
    """-A ratio, clipped as in PPO; or -A log-likelihood.

    Black et al. 2024 (arXiv 2305.13301): denoising as a decision process, whose actions are the
    steps. With importance sampling images may be used again (`reuse`, `policy_lag`); the score
    function's estimator is for images of the learner itself. Advantages are per prompt, over its
    last rewards. Defaults are those of the authors' PyTorch code, which trains on all steps; here
    `timesteps` of them are drawn. Guidance is part of the learner too.
    """

    objective: Literal["ddpo"] = setting("ddpo", "DDPO: policy gradient on steps of denoising")
    estimator: Literal["importance_sampling", "score_function"] = setting(
        "importance_sampling", "of the policy gradient: DDPO-IS or DDPO-SF"
    )
    clip_range: float = setting(
        1e-4, "with importance sampling, how far the ratio may move from 1 with a gradient", gt=0
    )
    advantage: Literal["group", "mean", "rank", "win_rate", "batch", "prompt"] = setting(
        "prompt",
        "reward to advantage: over a prompt's last 32 images; or as in other trainings",
    )
    rollout_steps: int = setting(50, "solver steps of a rollout", ge=2, le=1000)
    guidance: float = setting(5.0, "classifier-free guidance of policy and learner; 1: none", ge=1)
    lr: float = setting(3e-4, "learning rate of AdamW", gt=0)

    @model_validator(mode="after")
    def _draws_its_own(self) -> Self:
        """Refuse the score function's estimator on images of an earlier learner."""
        if self.estimator == "score_function" and (self.policy_lag > 1 or self.policy_keep):
            key = "policy_lag" if self.policy_lag > 1 else "policy_keep"
            raise ValueError(
                f"{key}={getattr(self, key)}: the score_function estimator needs images of the "
                f"learner itself; leave {key} out, or set estimator=importance_sampling"
            )
        return self

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,), advantage_B = sides, facts["advantage"]
        log_ratio_B = self.log_ratio(image.policy_gap, facts, image)
        if self.estimator == "score_function":
            # The policy's log-likelihood is a constant.
            return self.held(-advantage_B * log_ratio_B, facts, image), {}
        loss_B, metrics = ppo_loss(advantage_B, log_ratio_B.exp(), self.clip_range)
        return self.held(loss_B, facts, image), metrics

"""The settings of trainings on samples of their own policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from raypref.align.config import TrainingConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import nn


class RolloutConfig(TrainingConfig):
    """A training on samples of its own policy, a copy of the learner renewed now and then."""

    shares_weights: ClassVar[bool] = False  # rollouts stop at steps of their own

    rollout_steps: int = setting(20, "solver steps of a whole trajectory", ge=1, le=1000)
    rollout_batch: int = setting(
        32,
        "samples per worker that are rolled out at once; no gradients are kept, so more than "
        "micro_batch",
        affects_result=False,
        ge=1,
    )
    policy_lag: int = setting(
        16, "optimizer steps between refreshes of the policy; at 1 it equals the learner", ge=1
    )

    def refresh(self, module: nn.Module, *, first: bool) -> None:
        """Renew the policy: a copy of the learner.

        Args:
            module: the network.
            first: whether the training begins.
        """
        from raypref.align.residuals import LEARNER, POLICY
        from raypref.models import adapters

        adapters.copy(module, LEARNER, POLICY)

    @property
    def samples_at_once(self) -> int:
        """A rollout keeps no gradients: several micro-batches at once."""
        return self.micro_batch * max(1, self.rollout_batch // self.micro_batch)

"""SPIN-Diffusion: the photograph against what an earlier self makes of its caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.align.rollout_config import RolloutConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.config import Experience
    from raypref.align.residuals import Residuals


class SPIN(RolloutConfig, PairwiseConfig):
    """-log sigmoid(logit) against the policy, on the photograph and the policy's own image.

    Yuan et al. 2024 (arXiv 2402.10210): the opponent of an iteration is the learner as it was when
    the iteration began; it draws the rejected images and is what learner is compared with. That is
    the policy here, and `policy_lag` is the length of an iteration; `reference` is not read. Ours:
    images are drawn afresh for every sample and without guidance; the paper draws one per prompt
    and iteration. Both sides are noised with one noise to one timestep.
    """

    against: ClassVar[str] = "policy"

    objective: Literal["spin"] = setting("spin", "SPIN-Diffusion: photograph against earlier self")
    policy_lag: int = setting(
        100, "optimizer steps of an iteration: then the learner becomes its own opponent", ge=1
    )

    def experience(self) -> Experience:
        """Photographs and images of the policy."""
        from raypref.align.experience import self_play

        return self_play

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        return -F.logsigmoid(logit), metrics

"""Linear-DPO: the errors weighted by how far a pair is from being ranked, linearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals

SLOPE = 0.2  # of the released code; a sigmoid's is 1/4 at 0


class LinearDPO(PairwiseConfig):
    """clip(0.2 beta (chosen gap - rejected gap) + 1/2, eta, 1 - eta) * (error_w - error_l).

    Linear-DPO 2026 (arXiv 2605.21123) and its code. The weight takes no gradient. It is a straight
    line in place of the sigmoid that weighs Diffusion-DPO's gradient, and never quite 0 or 1. The
    paper's reference is a moving average of the learner, its beta 100 and eta 0.001 for SD-1.5,
    5000 and 0.05 for SD-3 on HPDv3.
    """

    objective: Literal["linear_dpo"] = setting("linear_dpo", "Linear-DPO: a clipped linear weight")
    beta: float = setting(100.0, "steepness of the weight", gt=0)
    eta: float = setting(0.001, "smallest weight, 0 to 0.5; 1 - eta is the largest", ge=0, le=0.5)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        chosen, rejected = sides
        _, metrics = self.logit(sides)
        weight = SLOPE * self.beta * metrics["diff"] + 0.5
        weight = weight.clamp(min=self.eta, max=1 - self.eta)
        return weight * (chosen.error - rejected.error), metrics | {"weight": weight}

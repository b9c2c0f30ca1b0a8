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
    reference is a moving average of the learner. The defaults are those of its code for SD-1.5; for
    SD-3 on HPDv3 it has beta 5000 and eta 0.05.
    """

    objective: Literal["linear_dpo"] = setting("linear_dpo", "Linear-DPO: a clipped linear weight")
    beta: float = setting(100.0, "steepness of the weight", gt=0)
    reference: Literal["start", "base", "ema"] = setting(
        "ema", "the model to compare with: a moving average of the learner, or a frozen one"
    )
    reference_decay: float = setting(
        0.99,
        "with reference=ema, what the reference keeps of itself per optimizer step",
        ge=0,
        lt=1,
    )
    eta: float = setting(0.001, "smallest weight, 0 to 0.5; 1 - eta is the largest", ge=0, le=0.5)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        chosen, rejected = sides
        _, metrics = self.logit(sides)
        weight = SLOPE * self.beta * metrics["diff"] + 0.5
        weight = weight.clamp(min=self.eta, max=1 - self.eta)
        return weight * (chosen.error - rejected.error), metrics | {"pair_weight": weight}

"""DMPO: the reverse KL divergence between the learner's preference and the labels'."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class DMPO(PairwiseConfig):
    """KL(Bernoulli(sigmoid(logit)) || Bernoulli(1 - alpha)).

    Li et al. 2025 (arXiv 2507.07510), as the code of arXiv 2511.03317 has it. `cdpo` is the other
    direction of the divergence, up to a constant. The loss is 0 where sigmoid(logit) = 1 - alpha,
    and its gradient vanishes on both ends: a pair that the learner has all wrong counts little.
    """

    objective: Literal["dmpo"] = setting("dmpo", "DMPO: reverse KL to the labels' preference")
    alpha: float = setting(
        0.01, "probability that a label is wrong, above 0 up to 0.5", gt=0, le=0.5
    )

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        prefers = torch.sigmoid(logit) * (F.logsigmoid(logit) - math.log1p(-self.alpha))
        other = torch.sigmoid(-logit) * (F.logsigmoid(-logit) - math.log(self.alpha))
        return prefers + other, metrics

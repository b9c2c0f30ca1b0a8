"""Hinge on the logit, as SLiC and RSO use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class Hinge(PairwiseConfig):
    """max(0, 1 - logit).

    SLiC's calibration loss (Zhao et al. 2023, arXiv 2305.10425, section 2) on likelihoods relative
    to the reference, as RSO writes it (Liu et al. 2024, arXiv 2309.06657, hinge-norm with
    gamma = beta).
    """

    objective: Literal["hinge"] = setting("hinge", "hinge on the logit")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        logit, metrics = self.logit(sides)
        active = (logit < 1).to(logit.dtype).detach()
        return (1 - logit).clamp(min=0), metrics | {"hinge_active": active}

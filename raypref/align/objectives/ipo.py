"""IPO: the logit is pulled to a fixed margin instead of to infinity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class IPO(PairwiseConfig):
    """(logit - 1/2)^2.

    Azar et al. 2024 (arXiv 2310.12036, eq. 17; survey arXiv 2409.07253, eq. 11) write
    (h - 1/(2 beta))^2, where beta * h is the logit. This is that times beta^2: the same minimum,
    with gradients of DPO's size, for which clipping and AdamW's eps were chosen.
    """

    objective: Literal["ipo"] = setting("ipo", "IPO: squared distance of the logit to 1/2")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        logit, metrics = self.logit(sides)
        return (logit - 0.5).square(), metrics

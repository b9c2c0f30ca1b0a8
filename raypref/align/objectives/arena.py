"""Diffusion-DPO with a margin: as large as the gap that the arena infers, or fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class ArenaPO(PairwiseConfig):
    """-log sigmoid(logit - gamma * gap): a pair with a larger gap must be told apart by more.

    The gap comes from capabilities of the generators that people's choices fit (ArenaPO, Li et al.
    2026, arXiv 2605.06070; `pairs/arena.py`). Its mean over the pairs is 1. The paper's abstract
    does not say how the gap enters the loss. Three forms are here:

    - margin: -log sigmoid(logit - gamma * gap), as in ODPO (Amini et al. 2024, arXiv 2402.10571);
    - weight: -gap^gamma * log sigmoid(logit);
    - regression: (logit - gamma * gap)^2, a target instead of a bound, as in IPO and REBEL.

    With gamma 0 the first two are `dpo`. With one gap for all pairs the margin is `fixed_margin`.
    """

    facts: ClassVar[tuple[str, ...]] = ("gap",)

    objective: Literal["arena"] = setting("arena", "ArenaPO: a margin per pair, from its gap")
    variant: Literal["margin", "weight", "regression"] = setting(
        "margin",
        "how the gap enters: margin, the logit has to exceed gamma * gap; weight, it weighs the "
        "pair's loss by gap^gamma; regression, it is the logit's target",
    )
    gamma: float = setting(1.0, "strength of the gap; the mean margin, as gaps have mean 1", ge=0)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        gap = facts["gap"]
        metrics |= _margin_metrics(logit, self.gamma * gap)
        if self.variant == "weight":
            return -gap.pow(self.gamma) * F.logsigmoid(logit), metrics
        if self.variant == "regression":
            return (logit - self.gamma * gap).square(), metrics
        return -F.logsigmoid(logit - self.gamma * gap), metrics


class FixedMargin(PairwiseConfig):
    """-log sigmoid(logit - gamma): one margin for all pairs.

    ODPO (Amini et al. 2024, arXiv 2402.10571) with one offset instead of one per pair. It is what
    `arena` has to be compared with. With gamma 0 it is `dpo`.
    """

    objective: Literal["fixed_margin"] = setting(
        "fixed_margin", "Diffusion-DPO with one margin for all pairs"
    )
    gamma: float = setting(1.0, "margin that the logit has to exceed", ge=0)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        return -F.logsigmoid(logit - self.gamma), metrics | _margin_metrics(logit, self.gamma)


def _margin_metrics(logit: Tensor, margin: Tensor | float) -> Metrics:
    """Share of samples whose logit exceeds the margin, and the logit, each [B]."""
    return {
        "margin_exceeded": (logit > margin).to(logit.dtype).detach(),
        "logit": logit.detach(),
    }

"""CaPO: the logit is pulled to the difference of the pair's scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class CaPO(PairwiseConfig):
    """(score_chosen - score_rejected - logit)^2.

    Lee et al. 2025 (arXiv 2502.02588): scores are calibrated win rates, 0 to 1, as the rules `capo`
    and `caen` of the choice make them; a pair that hardly differs asks for a small logit. With a
    difference of 1/2 for all pairs it is `ipo`. The code of Follow-Your-Preference++ (arXiv
    2606.03216) draws the noise of each side on its own here; as everywhere, a pair shares it.
    """

    facts: ClassVar[tuple[str, ...]] = ("score_chosen", "score_rejected")

    objective: Literal["capo"] = setting("capo", "CaPO: the logit meets the difference of scores")

    def instead(self, columns: Collection[str]) -> str:
        """The objective that needs no scores."""
        return "objective=ipo"

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        logit, metrics = self.logit(sides)
        gap = facts["score_chosen"] - facts["score_rejected"]
        return (gap - logit).square(), metrics | {"score_gap": gap, "logit": logit.detach()}

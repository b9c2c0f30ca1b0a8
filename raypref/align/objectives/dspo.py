"""DSPO: the score of the chosen image, corrected by what the preference asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class DSPO(PairwiseConfig):
    """|d - k (d - r)|^2 on the chosen side, k = beta (1 - sigmoid(logit)).

    Zhu et al. 2025, "DSPO: Direct Score Preference Optimization for Diffusion Model Alignment"
    (ICLR), in the form of its code for SD-1.5; its branch for SDXL computes another loss. The
    gradient flows through k too, as there: so the rejected image takes part. With beta near 0 it
    is `sft`.
    """

    objective: Literal["dspo"] = setting("dspo", "DSPO: score matching with the preference's score")
    beta: float = setting(0.001, "weight of the preference's score, and of the logit", gt=0)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch

        logit, metrics = self.logit(sides)
        chosen = sides[0]
        k = self.beta * torch.sigmoid(-logit)
        # |(1 - k) d + k r|^2 in inner products.
        loss = (
            (1 - k).square() * chosen.error
            + k.square() * chosen.reference_error
            + 2 * k * (1 - k) * chosen.cross
        )
        return loss, metrics

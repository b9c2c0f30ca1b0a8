"""Diffusion-DPO and the chosen image's own error, so that it cannot get worse unnoticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class DPOSFT(PairwiseConfig):
    """-log sigmoid(logit) + sft_weight * beta/2 * (chosen error).

    The form of Iterative RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1: L_DPO + alpha L_NLL); the
    likelihood of a diffusion model is its denoising error (Ho et al. 2020, eq. 14), here in the
    units of the logit. With sft_weight 0 it is `dpo`.
    """

    objective: Literal["dpo_sft"] = setting(
        "dpo_sft", "Diffusion-DPO with the chosen image's error"
    )
    sft_weight: float = setting(
        0.1, "weight of the chosen image's own error, in units of the logit", ge=0
    )

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        own = self.sft_weight * 0.5 * self.beta * sides[0].error
        return -F.logsigmoid(logit) + own, metrics

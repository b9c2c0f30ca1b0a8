"""Diffusion-DPO: the likelihood that the chosen image is preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class DPO(PairwiseConfig):
    """-log sigmoid(logit): equation 2 of the paper (Wallace et al. 2024, arXiv 2311.12908)."""

    objective: Literal["dpo"] = setting("dpo", "Diffusion-DPO")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        return -F.logsigmoid(logit), metrics

"""Diffusion-KTO: each image of a pair enters with a utility of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class KTO(PairwiseConfig):
    """(1 - U(chosen reward)) + (1 - U(-rejected reward)), U the sigmoid.

    Li et al. 2024 (arXiv 2404.04465, section 4; survey arXiv 2409.07253, eq. 13, with both lambdas
    1). The reward is -beta/2 * gap, so that chosen minus rejected is the logit. One image of a pair
    may gain without the other.

    The papers subtract a reference point, beta times the divergence from the reference estimated
    over the batch at hand. Here it is 0, its value where training starts: the loss of a sample then
    does not depend on what is beside it, nor the run on how a batch is split.
    """

    objective: Literal["kto"] = setting("kto", "Diffusion-KTO on pairs")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch

        _, metrics = self.logit(sides)
        chosen, rejected = (-0.5 * self.beta * side.gap for side in sides)
        # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected), metrics

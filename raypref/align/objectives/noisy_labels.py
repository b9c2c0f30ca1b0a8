"""Diffusion-DPO for labels of which a known share is wrong: conservative and robust DPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class NoisyLabelsConfig(PairwiseConfig):
    """A training that knows how many labels are wrong."""

    label_noise: float = setting(
        0.1, "q: share of pairs whose label is wrong, 0 up to 0.5; 0 is dpo", ge=0, lt=0.5
    )

    def both_ways(self, sides: Sequence[Residuals]) -> tuple[Tensor, Tensor, Metrics]:
        """Diffusion-DPO's loss with the label as it is and swapped, each [B], and metrics."""
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        return -F.logsigmoid(logit), -F.logsigmoid(-logit), metrics


class CDPO(NoisyLabelsConfig):
    """(1 - q) f(logit) + q f(-logit), f = -log sigmoid: the cross entropy with a soft label.

    Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO". The logit
    is pulled to log((1 - q) / q) and no further.
    """

    objective: Literal["cdpo"] = setting("cdpo", "conservative DPO: labels are smoothed by q")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        given, swapped, metrics = self.both_ways(sides)
        return (1 - self.label_noise) * given + self.label_noise * swapped, metrics


class RDPO(NoisyLabelsConfig):
    """((1 - q) f(logit) - q f(-logit)) / (1 - 2 q), f = -log sigmoid.

    Chowdhury et al. 2024 (arXiv 2403.00409): its mean over labels of which the share q is
    wrong is Diffusion-DPO's loss with the right ones. It is not bounded below: it falls by
    q / (1 - 2 q) per unit of the logit where the logit is large.
    """

    objective: Literal["rdpo"] = setting("rdpo", "robust DPO: unbiased where a share q is wrong")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        given, swapped, metrics = self.both_ways(sides)
        q = self.label_noise
        return ((1 - q) * given - q * swapped) / (1 - 2 * q), metrics

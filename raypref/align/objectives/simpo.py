"""SimPO: the difference of the learner's own errors must exceed a margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import ReferenceFreeConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class SimPO(ReferenceFreeConfig):
    """-log sigmoid(-beta/2 * (chosen error - rejected error) - gamma).

    Meng et al. 2024 (arXiv 2405.14734, eq. 6) for language models; the denoising error in place of
    the mean log likelihood per token, and Diffusion-DPO's beta/2, are ours. The errors of two
    images differ by what they show, far more than a learner differs from its reference: beta is
    smaller here than in `dpo`.
    """

    objective: Literal["simpo"] = setting("simpo", "SimPO: own errors with a margin, no reference")
    beta: float = setting(100.0, "scale of the difference of the errors", gt=0)
    gamma: float = setting(0.5, "margin of the scaled difference", ge=0)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        chosen, rejected = sides
        scaled = -0.5 * self.beta * (chosen.error - rejected.error)
        return -F.logsigmoid(scaled - self.gamma), self.ranked(sides)

"""MaPO: the chosen image's error and the odds of both images, without a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import ReferenceFreeConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class MaPO(ReferenceFreeConfig):
    """chosen error - beta * log sigmoid(T * (o(chosen error) - o(rejected error))).

    Hong et al. 2024 (arXiv 2406.06424): ORPO's odds ratio (arXiv 2403.07691) in the form that
    diffusion models allow, with o(e) = s e / (exp(s e) - 1) as in the released code. T is the
    number of timesteps there, 1000.
    """

    objective: Literal["mapo"] = setting("mapo", "MaPO: odds of both images, no reference")
    beta: float = setting(0.1, "weight of the preference beside the chosen image's error", ge=0)
    snr: float = setting(0.5, "s: scale of the errors in the odds", gt=0)
    horizon: float = setting(1000.0, "T: factor of the difference of the odds", gt=0)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        chosen, rejected = (odds(self.snr * side.error) for side in sides)
        preference = F.logsigmoid(self.horizon * (chosen - rejected))
        return sides[0].error - self.beta * preference, self.ranked(sides)


def odds(x: Tensor) -> Tensor:
    """x / (exp(x) - 1) for x >= 0: 1 at 0, and neither it nor its gradient overflows."""
    import torch

    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    return x * torch.exp(-x) / -torch.expm1(-x)

"""f-DPO: Diffusion-DPO with another divergence from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals

LARGEST = 30.0  # exponents beyond it go on as a straight line


class FDPO(PairwiseConfig):
    """-log sigmoid(beta/T * (f'(u_w) - f'(u_l))), u the likelihood ratio of learner to reference.

    Wang et al. 2024 (arXiv 2309.16240, table 1), f' up to a constant, which the difference loses:

        reverse_kl  log u                gives `dpo`
        forward_kl  -1/u
        js          log(u / (1 + u))     Jensen-Shannon
        alpha       (1 - u^-alpha)/alpha alpha towards 0 gives reverse_kl, 1 gives forward_kl

    For diffusion models this is ours: log u = -T/2 * gap, the likelihood of a whole trajectory
    estimated at one timestep. T decides how far from a straight line f' is on the gaps that occur;
    reverse_kl does not depend on it. Powers of u beyond exp(30) go on as their tangent, so that
    nothing overflows.
    """

    objective: Literal["fdpo"] = setting("fdpo", "f-DPO: another divergence from the reference")
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = setting(
        "js", "what holds the learner to the reference"
    )
    alpha: float = setting(0.5, "of the alpha divergence, above 0 below 1", gt=0, lt=1)
    horizon: float = setting(1000.0, "T: timesteps of a trajectory", gt=0)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch.nn.functional as F

        plain, metrics = self.logit(sides)
        if self.divergence == "reverse_kl":
            return -F.logsigmoid(plain), metrics
        chosen, rejected = (self._slope(-0.5 * self.horizon * side.gap) for side in sides)
        return -F.logsigmoid(self.beta / self.horizon * (chosen - rejected)), metrics

    def _slope(self, log_ratio: Tensor) -> Tensor:
        """f' at the logarithm of the ratio, up to a constant."""
        import torch.nn.functional as F

        if self.divergence == "js":
            return F.logsigmoid(log_ratio)
        power = 1.0 if self.divergence == "forward_kl" else self.alpha
        return -_expm1(-power * log_ratio) / power


def _expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, and its tangent beyond `LARGEST`."""
    import torch

    within = x.clamp(max=LARGEST)
    return torch.expm1(within) + within.detach().exp() * (x - within)

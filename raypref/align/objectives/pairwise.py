"""What the objectives on pairs share: beta, and the logit of Diffusion-DPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raypref.align.config import Metrics, TrainingConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class PairwiseConfig(TrainingConfig):
    """A training on pairs whose loss is a function of Diffusion-DPO's logit."""

    beta: float = setting(2000.0, "strength of the pull to the reference", gt=0)

    def logit(self, sides: Sequence[Residuals]) -> tuple[Tensor, Metrics]:
        """-beta/2 * (chosen gap - rejected gap), [B], and metrics per sample.

        Positive where the learner prefers the chosen image more than the reference does. The
        paper's beta * T is 0.5 * beta here, as in the released code (Wallace et al. 2024,
        arXiv 2311.12908, eq. 14).
        """
        chosen, rejected = sides
        diff = chosen.gap - rejected.gap
        logit = -0.5 * self.beta * diff
        return logit, {
            "diff": diff.detach(),
            "implicit_accuracy": (logit > 0).to(diff.dtype).detach(),
        }

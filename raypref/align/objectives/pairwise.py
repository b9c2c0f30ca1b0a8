"""What the objectives on pairs share: the discount, beta, and the logit of Diffusion-DPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics, TrainingConfig
from raypref.align.rollout_config import RolloutConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class PairObjectiveConfig(TrainingConfig):
    """A training on chosen and rejected images."""

    discount: float = setting(
        1.0,
        "weight of the loss at the least noisy timestep; at pure noise it is 1, and in between it "
        "is discount^(1 - t / last timestep); 1: all timesteps weigh the same",
        later=True,
        gt=0,
        le=1,
    )
    flip_per: Literal["pair", "image"] = setting(
        "pair",
        "what flip is drawn for: a pair, so that its images face one way; or each stored image of "
        "it, as in the released code, where half of the pairs face different ways",
        later=True,
    )

    @property
    def flips_apart(self) -> bool:
        """Whether chosen and rejected image, both stored, are mirrored independently."""
        stored = "rejected" in self.sides and not isinstance(self, RolloutConfig)
        return stored and self.flip_per == "image"

    def weighted(self, loss_B: Tensor, timesteps_B: Tensor, schedule_T: Tensor) -> Tensor:
        """Early steps of denoising decide what an image shows: later ones may weigh less.

        Yang et al. 2024 (arXiv 2402.08265) weigh step i of n in the order of denoising
        by gamma^i. That is discount = gamma^n, whatever the number of timesteps.
        """
        if self.discount == 1:
            return loss_B
        share_B = timesteps_B.to(loss_B) / schedule_T[-1].to(loss_B)
        return loss_B * self.discount ** (1 - share_B)


class PairwiseConfig(PairObjectiveConfig):
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


class ReferenceFreeConfig(PairObjectiveConfig):
    """A training on pairs that compares the learner's own errors: `reference` is not read."""

    against: ClassVar[str] = ""

    def ranked(self, sides: Sequence[Residuals]) -> Metrics:
        """Whether the learner denoises the chosen image better, [B]."""
        chosen, rejected = sides
        better = chosen.error < rejected.error
        return {"implicit_accuracy": better.to(chosen.error.dtype).detach()}

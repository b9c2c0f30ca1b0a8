"""Diffusion-DRO: the photograph against what the policy makes of its caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from raypref.align.config import Metrics
from raypref.align.rollout_config import RolloutConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.config import Experience
    from raypref.align.residuals import Residuals


class DRO(RolloutConfig):
    """max(m, chosen gap - rejected gap), equation 1 of arXiv 2605.19839.

    The chosen side is a real photograph, the rejected one a state of the policy's own trajectory.
    The released code computes max(0, diff - m), which differs by the constant m: same gradient.
    """

    objective: Literal["dro"] = setting("dro", "Diffusion-DRO: photograph against policy")
    margin: float = setting(
        -0.001, "m: samples that beat the reference by more have no gradient", le=0
    )
    policy_state: Literal["trajectory", "final"] = setting(
        "trajectory",
        "what the photograph is compared with: a state on the policy's trajectory, as released for "
        "SD-1.5; or its finished image, noised like the photograph, as released for SD-3.5-M",
    )

    rollout_stops: Literal[1, 2] = setting(
        1,
        "states taken of one trajectory: 2 makes two samples of a pair from one rollout, a fifth "
        "quicker per step, with half as many pairs in a batch",
        later=True,
    )

    @model_validator(mode="after")
    def _two_stops(self) -> Self:
        if self.rollout_stops == 2:
            if self.policy_state == "final":
                raise ValueError("rollout_stops=2 needs policy_state=trajectory: an image is one")
            if self.batch % 2 or self.rollout_steps < 2:
                raise ValueError("rollout_stops=2 needs an even batch and 2 rollout_steps or more")
        return self

    @property
    def samples_per_draw(self) -> int:
        """As many as states are taken of a trajectory."""
        return self.rollout_stops

    def experience(self) -> Experience:
        """Photographs and states of the policy."""
        from raypref.align.experience import policy_images, policy_trajectories

        return {"trajectory": policy_trajectories, "final": policy_images}[self.policy_state]

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        chosen, rejected = sides
        diff = chosen.gap - rejected.gap
        active = (diff > self.margin).to(diff.dtype).detach()
        return diff.clamp(min=self.margin), {"diff": diff.detach(), "hinge_active": active}

"""ReFL: the gradient of the reward of what the network takes the image for at a late step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from raypref.align.backprop_config import BackpropConfig, Plan
from raypref.core.config import InputError, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.pair_data import PairData


class ReFL(BackpropConfig):
    """scale * max(0, target - reward) of the clean prediction at a late step, and denoising.

    Reward feedback learning (Xu et al. 2023, arXiv 2304.05977), as released: the step is uniform
    over the last quarter of 40 without guidance; one step takes a gradient; the denoising error on
    the chosen images of the pairs is added. There the two are learned in turns on data of their
    own, here in one step.
    """

    objective: Literal["refl"] = setting("refl", "reward gradient of one late step")
    rollout_steps: int = setting(40, "solver steps of an image", ge=1, le=1000)
    late_from: float = setting(
        0.75, "the step is drawn from this share of rollout_steps on", ge=0, lt=1
    )
    target: float = setting(2.0, "images with a higher reward give no gradient")
    scale: float = setting(1e-3, "weight of the reward's loss", gt=0)
    pretraining: float = setting(
        1.0, "weight of the denoising error on the chosen images of the pairs; 0: none", ge=0
    )

    @property
    def denoising_weight(self) -> float:
        """Weight of the denoising error on the chosen images of the pairs."""
        return self.pretraining

    def plan(self, generator: torch.Generator) -> Plan:
        """The steps of one image; first the one it stops at is drawn."""
        import torch

        first = min(math.ceil(self.late_from * self.rollout_steps), self.rollout_steps - 1)
        late = self.rollout_steps - first
        stop = first + int(torch.randint(late, (), generator=generator))
        return Plan(stop, self.steps_up_to(stop, self.steps_with_gradient, generator))

    def reward_loss(self, reward_B: Tensor) -> Tensor:
        """The loss per image of its reward."""
        return self.scale * (self.target - reward_B).clamp(min=0)

    def prepared(self, data: PairData, *, key: str) -> PairData:
        """The pairs as they are.

        Raises:
            InputError: the denoising error is asked for, and there are prompts alone.
        """
        if self.pretraining and not data.moments.shape[1]:
            raise InputError(
                f"{key}.pretraining={self.pretraining:g}: the pairs are prompts without images; "
                f"set {key}.pretraining=0"
            )
        return super().prepared(data, key=key)

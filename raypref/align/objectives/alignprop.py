"""AlignProp: the gradient of the reward through a random number of last steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator

from raypref.align.backprop_config import BackpropConfig, Plan
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch


class AlignProp(BackpropConfig):
    """-reward of finished images, with a gradient through K last solver steps, K drawn per image.

    AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): K is uniform between
    `fewest_with_gradient` and `steps_with_gradient`; 1 to 50 of 50 steps is the paper's, about 5 to
    15 the released code's.
    """

    objective: Literal["alignprop"] = setting(
        "alignprop", "reward gradient through a random number of steps"
    )
    guidance: float = setting(7.5, "classifier-free guidance of the images; 1: none", ge=1)
    steps_with_gradient: int = setting(
        50, "most solver steps whose prediction takes a gradient; their number is drawn", ge=1
    )
    fewest_with_gradient: int = setting(1, "fewest of them", ge=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        """Refuse a range without a number in it."""
        if self.fewest_with_gradient > self.steps_with_gradient:
            raise ValueError(
                f"fewest_with_gradient={self.fewest_with_gradient}: it is more than "
                f"steps_with_gradient={self.steps_with_gradient}"
            )
        return self

    def plan(self, generator: torch.Generator) -> Plan:
        """The steps of one image; first the number of those with a gradient is drawn."""
        import torch

        choices = self.steps_with_gradient - self.fewest_with_gradient + 1
        count = self.fewest_with_gradient + int(torch.randint(choices, (), generator=generator))
        last = self.rollout_steps - 1
        return Plan(last, self.steps_up_to(last, count, generator))

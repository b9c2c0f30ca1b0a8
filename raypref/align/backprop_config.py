"""The settings of trainings on gradients of rewards: which solver steps take one, and of what.

Such a training draws images with its learner, decodes them, and follows the gradient of their
reward through decoder and solver to the adapter (`backprop.py`). Prompts are those of the pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Self

from pydantic import model_validator

from raypref.align.online_config import RewardedConfig
from raypref.core.config import InputError, setting
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Plan(NamedTuple):
    """What is learned of one image's path through the solver."""

    stop: int  # the step whose clean prediction is the image; the last one gives the finished image
    learned: frozenset[int]  # the steps whose prediction takes a gradient


class BackpropConfig(RewardedConfig):
    """A training on gradients of rewards. A step draws `batch` images: prompts * `group`."""

    rollout_steps: int = setting(50, "solver steps of an image", ge=1, le=1000)
    guidance: float = setting(1.0, "classifier-free guidance of the images; 1: none", ge=1)
    group: int = setting(
        1, "images per prompt; from 2 on their diversity and spread of rewards are measured", ge=1
    )
    steps_with_gradient: int = setting(
        1, "solver steps whose prediction takes a gradient, the last ones before the image", ge=1
    )
    spread: bool = setting(
        False, "they are evenly spread over all steps from a drawn first one instead, as DRTune's"
    )
    stop_gradient: bool = setting(
        False,
        "no gradient through what the network reads, as DRTune: it flows along the solver alone",
    )
    kl: float = setting(
        0.0,
        "weight of the squared distance between predictions of learner and reference, at one drawn "
        "step per image",
        ge=0,
    )
    recompute: bool = setting(
        True,
        "recompute each solver step and the decoder in backward: the memory of one step, however "
        "many take a gradient",
        affects_result=False,
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch % self.group:
            raise ValueError(
                f"batch={self.batch}: it is prompts times group={self.group}, so a multiple of it"
            )
        if self.steps_with_gradient > self.rollout_steps:
            raise ValueError(
                f"steps_with_gradient={self.steps_with_gradient}: there are rollout_steps="
                f"{self.rollout_steps}"
            )
        if self.min_diversity and self.group < 2:
            raise ValueError(
                f"min_diversity={self.min_diversity:g}: it is measured within the images of a "
                "prompt; set group to 2 or more"
            )
        return self

    @property
    def against(self) -> str:  # type: ignore[override]
        """The reference, where the distance to it is asked for."""
        return "ref" if self.kl or self.max_kl else ""

    @property
    def sides(self) -> tuple[str, ...]:
        """Images of its own."""
        return ("image",)

    @property
    def draws_per_pair(self) -> int:
        """A group of images per prompt."""
        return self.group

    @property
    def further_noises(self) -> int:
        """Images beside each image, of the finished one noised to the last step again."""
        return 0

    @property
    def denoising_weight(self) -> float:
        """Weight of the denoising error on the chosen images of the pairs."""
        return 0.0

    def plan(self, generator: torch.Generator) -> Plan:
        """Which steps an image takes, and which of them with a gradient; here to the end."""
        last = self.rollout_steps - 1
        return Plan(last, self.steps_up_to(last, self.steps_with_gradient, generator))

    def steps_up_to(self, stop: int, count: int, generator: torch.Generator) -> frozenset[int]:
        """The `count` last steps up to `stop`, that one included, or with `spread` others.

        Those are as far from each other as possible, the first one drawn, as in DRTune
        (arXiv 2405.00760).
        """
        import torch

        count = min(count, stop + 1)
        if not self.spread:
            return frozenset(range(stop + 1 - count, stop + 1))
        apart = (stop + 1) // count
        first = int(torch.randint(stop - apart * (count - 1) + 1, (), generator=generator))
        return frozenset(first + apart * number for number in range(count))

    def reward_loss(self, reward_B: Tensor) -> Tensor:
        """The loss per image of its reward: here its negative."""
        return -reward_B

    def check_rewards(self, rewards: Mapping[str, RewardConfig], *, key: str) -> None:
        """Raise InputError where a reward that is trained on has no gradient.

        Args:
            rewards: settings by name, of those that are trained on and others.
            key: of this training in the settings, for messages.
        """
        from raypref.rewards.registry import REWARDS

        for name in self.rewards:
            if not rewards[name].differentiable:
                able = [other for other, kind in REWARDS.items() if kind.differentiable]
                raise InputError(
                    f"{key}.rewards: {name} has no gradient to the pixels, which "
                    f"objective={self.objective} needs; those that have one are "
                    f"{', '.join(able)} and heads; or take an objective that scores images alone"
                )

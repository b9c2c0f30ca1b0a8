"""MixGRPO: Flow-GRPO whose rollouts have noise in a sliding window of steps alone."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from raypref.align.objectives.flow_grpo import FlowGRPO
from raypref.core.config import setting


class MixGRPO(FlowGRPO):
    """Flow-GRPO with noise in `window_size` steps; the others follow the flow.

    Li et al. 2025 (arXiv 2507.21802): images of a prompt differ by the noise of few steps, which
    alone are trained on. The window begins at the first step, where most of an image is decided.
    It moves on by `window_stride` every `window_every` optimizer steps, and begins anew where it
    would leave the path; the release lets it shrink at the end. Defaults are those of the released
    code for FLUX.1, which draws without guidance: 25 steps, a window of 4.
    """

    objective: Literal["mix_grpo"] = setting(  # type: ignore[assignment]
        "mix_grpo", "MixGRPO: Flow-GRPO with noise in a sliding window"
    )
    window_size: int = setting(4, "steps of a rollout that have noise", ge=1)
    window_every: int = setting(25, "optimizer steps until the window moves on", ge=1)
    window_stride: int = setting(1, "steps that it moves on by", ge=1)
    rollout_steps: int = setting(25, "solver steps of a rollout", ge=2, le=1000)
    shared_start: bool = setting(
        True, "start all images of a prompt from one noise, so that they differ by their paths"
    )
    kl: float = setting(0.0, "weight of the distance to the reference (kl_of); 0: none", ge=0)
    guidance: float = setting(1.0, "classifier-free guidance of policy and learner; 1: none", ge=1)
    lr: float = setting(1e-5, "learning rate of AdamW", gt=0)

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        """Refuse a window that is longer than the path."""
        if self.window_size >= self.rollout_steps:
            raise ValueError(
                f"window_size={self.window_size}: it must be less than rollout_steps="
                f"{self.rollout_steps}, whose last step has no noise"
            )
        return self

    @property
    def noisy_steps(self) -> int:
        """Those of the window."""
        return self.window_size

    def window(self, step: int) -> range:
        """The window of images that are first used for an optimizer step."""
        begins = range(0, self.rollout_steps - self.window_size, self.window_stride)
        first = begins[step // self.window_every % len(begins)]
        return range(first, first + self.window_size)

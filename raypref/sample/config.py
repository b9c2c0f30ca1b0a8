"""The settings of `raypref sample`: what is drawn at inference time, and how much it may cost."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator, model_validator

from raypref.core.config import InputError, Section, setting
from raypref.rewards.rewards import require_rewards
from raypref.run.config import RunConfig


class SamplingConfig(Section):
    """How `raypref sample` makes an image; prompts, seeds, steps, guidance are `evaluate`'s."""

    name: str = setting(
        "",
        "folder of the result below <storage>/<run>/sample/; empty: the method's name",
        affects_result=False,
    )
    method: Literal["plain", "best_of", "noise_search", "fk_steering", "reno"] = setting(
        "plain",
        "plain: one image per prompt and seed; best_of: the best of several noises; noise_search: "
        "from the best noise to its neighbours; fk_steering: particles that are resampled on the "
        "way; reno: the gradient of the reward on the noise, for models of few steps",
    )
    loras: str = setting(
        "",
        "LoRA: a training of the run, a folder, a file or a hub id; weighted '0.5 * A'; a soup "
        "'0.5 * A + 0.5 * B'; empty: the run's last training if it is done, else none; none",
    )
    merged: bool = setting(
        False,
        "also write the LoRA, or the soup, as one file into the result's folder",
        affects_result=False,
    )
    negative: str = setting(
        "", "LoRA or soup of the unconditional side of guidance (NPO, arXiv 2505.11245); empty: off"
    )
    negative_weight: float = setting(
        1.0,
        "weight of sample.negative, which is added to sample.loras there; 0: ordinary guidance",
    )
    rewards: dict[str, float] = setting(
        {"pickscore": 1.0},
        "what images are judged by, with weights: {NAME = weight}; the sum is the reward; 0 leaves "
        "one out",
    )
    candidates: int = setting(
        8, "best_of: noises; fk_steering: particles; noise_search: neighbours per round", ge=1
    )
    rounds: int = setting(4, "noise_search: rounds", ge=1)
    spread: float = setting(
        0.2, "noise_search: share of a neighbour's variance that is new", gt=0, le=1
    )
    every: int = setting(5, "fk_steering: steps between two resamplings", ge=1)
    potential: Literal["max", "difference", "sum"] = setting(
        "max",
        "fk_steering: the best reward so far, what it rose since the last resampling, or the sum",
    )
    strength: float = setting(
        10.0, "fk_steering: what the potential is multiplied by; 0: particles stay", ge=0
    )
    churn: float = setting(
        0.5,
        "fk_steering: share of the noise's variance that is new in copies of a particle, which "
        "would stay equal otherwise",
        ge=0,
        le=1,
    )
    ascents: int = setting(50, "reno: gradient steps", ge=1)
    rate: float = setting(5.0, "reno: learning rate", gt=0)
    clip: float = setting(0.1, "reno: longest gradient", gt=0)
    regulariser: float = setting(
        0.01, "reno: weight of the noise's log-density by its length (chi distribution)", ge=0
    )

    @field_validator("name")
    @classmethod
    def _one_folder(cls, name: str) -> str:
        if name and not re.fullmatch(r"[\w-]+", name):
            raise ValueError("take letters, digits, - and _")
        return name

    @field_validator("rewards")
    @classmethod
    def _some(cls, rewards: dict[str, float]) -> dict[str, float]:
        kept = {name: weight for name, weight in rewards.items() if weight}
        if not kept:
            raise ValueError("name at least one reward, as {pickscore = 1.0}")
        return kept

    @property
    def folder(self) -> str:
        """The last name of the result's folder."""
        return self.name or self.method


class SampleJobConfig(RunConfig):
    """All settings of a run, and these."""

    sample: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _sensible(self) -> SampleJobConfig:
        own = self.sample
        require_rewards("sample.rewards", list(own.rewards), self.rewards)
        if own.negative and self.evaluate.guidance <= 1:
            raise InputError(
                "sample.negative: the unconditional side is drawn only with "
                "evaluate.guidance above 1"
            )
        if own.method == "fk_steering" and own.every >= self.evaluate.steps:
            raise InputError(
                f"sample.every={own.every}: with evaluate.steps={self.evaluate.steps} nothing "
                "would be resampled; take a smaller one"
            )
        return self

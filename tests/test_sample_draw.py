"""The transform of `raypref sample` on a small network, with brightness as the reward."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import training

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.evaluate.generate import GenerateConfig
from raypref.rewards.config import RewardConfig
from raypref.sample.config import SamplingConfig
from raypref.sample.draw import DrawChosen


class Brightness:
    """Mean level, 0 to 1."""

    def score(self, images, prompts):
        return np.array([np.asarray(image).mean() / 255 for image in images], dtype=np.float32)

    def score_pixels(self, pixels, prompts):
        return pixels.mean((1, 2, 3))


class BrightnessConfig(RewardConfig):
    """Settings of it."""

    label: ClassVar[str] = "Brightness"
    digits: ClassVar[int] = 3
    differentiable: ClassVar[bool] = True
    resources: Resources = Resources(batch=4)

    def check(self) -> None:
        """Nothing is needed."""

    def load(self) -> Brightness:
        return Brightness()


def drawn(method: str, **changes) -> list[Row]:
    """Two prompts, one seed each, in a batch of three, padded as the engine does."""
    settings = {"rewards": {"pickscore": 2.0}, "candidates": 3, "rounds": 1, "every": 1} | changes
    stage = DrawChosen(
        training.BASE,
        GenerateConfig(steps=3, guidance=2.0, size=64, resources=Resources(batch=3)),
        SamplingConfig(method=method, **settings),
        rewards={"pickscore": BrightnessConfig()},
    )
    stage.setup()
    rows = [{"prompt": "a red ball", "noise": 3}, {"prompt": "a tree", "noise": 4}]
    stage.finish(rows, stage.compute(stage.prepare([*rows, rows[-1]])))
    return rows


@pytest.fixture(scope="module")
def plain() -> list[Row]:
    return drawn("plain")


def test_plain_rows_hold_image_reward_and_forwards(plain):
    for row in plain:
        level = np.asarray(row["image"]).mean() / 255
        assert row["score_pickscore"] == pytest.approx(level, abs=1e-6)
        assert row["reward"] == pytest.approx(2 * level, abs=1e-6)
        assert (row["forwards"], row["seen"]) == (6, 1)


@pytest.mark.parametrize(
    ("method", "forwards", "seen"),
    [("best_of", 18, 3), ("noise_search", 24, 4), ("fk_steering", 18, 9), ("reno", 30, 5)],
)
def test_every_method_tells_its_cost_and_does_not_lose_reward(plain, method, forwards, seen):
    changes = {"strength": 0.0} if method == "fk_steering" else {}
    for row, before in zip(drawn(method, ascents=4, **changes), plain, strict=True):
        assert row["forwards"] == forwards
        assert row["seen"] == (3 if changes else seen)
        assert row["reward"] >= before["reward"] - 1e-6


def test_steering_resamples_and_counts(plain):
    again = [drawn("fk_steering", strength=50.0) for _ in range(2)]
    assert [row["seen"] for row in again[0]] == [9, 9]
    for one, two in zip(*again, strict=True):
        assert one["image"].tobytes() == two["image"].tobytes()

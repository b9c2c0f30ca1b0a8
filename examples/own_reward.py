"""A reward of your own judges the pairs of own_photographs.py, beside PickScore."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from PIL import Image

from raypref.core.config import Resources, load, setting
from raypref.rewards.base import Reward
from raypref.rewards.config import RewardConfig
from raypref.rewards.registry import REWARDS
from raypref.run.config import RunConfig


class SharpnessConfig(RewardConfig):
    """Its settings; `rewards.sharpness.side=64` sets one."""

    label: ClassVar[str] = "Sharpness"  # in tables and on the page

    side: int = setting(64, "images are judged at this side", ge=8)
    resources: Resources = Resources(batch=16)

    def check(self) -> None:
        """A reward with weights looks for them here."""

    def load(self) -> "Sharpness":
        """The model."""
        return Sharpness(self.side)


class Sharpness(Reward):
    """How much neighbouring pixels differ, in grey levels. The prompt does not count."""

    def __init__(self, side: int) -> None:
        self.size = (side, side)

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[np.ndarray]:
        """What `compute` reads, made on the CPU."""
        return [np.asarray(im.convert("L").resize(self.size), np.float32) for im in images]

    def compute(self, batch: list[np.ndarray]) -> np.ndarray:
        """Scores of B images: float32 [B]."""
        return np.array([np.abs(np.diff(grey)).mean() for grey in batch], np.float32)


REWARDS["sharpness"] = SharpnessConfig  # now it has settings, a column in tables and on the page

config = load(RunConfig, "tiny", ["rewards.sharpness.side=32"])
pairs = pd.concat(map(pd.read_parquet, sorted(Path("runs/my-photos/pairs").glob("*.parquet"))))
for reward in (config.pickscore, config.rewards["sharpness"]):
    model, scores = reward.load(), {}
    for side in ("chosen", "rejected"):
        images = [Image.open(io.BytesIO(image["bytes"])) for image in pairs[side]]
        scores[side] = model.score(images, [*pairs["prompt"]])
    share = (scores["chosen"] > scores["rejected"]).mean()
    print(f"{reward.label} prefers the photograph in {share:.0%} of {len(pairs)} pairs")

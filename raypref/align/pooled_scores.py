"""Scores of a training's images by actors, which hold the reward models in place of its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from raypref.align.reward_groups import RewardGroup
from raypref.core.rows import Row
from raypref.engine.batches import in_batches
from raypref.rewards.base import Score
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor


class HeldRewards:
    """Rewards that are loaded in this process: what an actor holds.

    Every reward gets batches of one shape, its own `resources.batch`, the last one padded. So a
    score does not tell with how many others its image came.

    Args:
        rewards: settings by name.
    """

    def __init__(self, rewards: Mapping[str, RewardConfig]) -> None:
        self.stages = {
            name: Score(config, columns={"image": "score"}, prompt="prompt")
            for name, config in rewards.items()
        }
        for stage in self.stages.values():
            stage.setup()

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores of N images (uint8) for their prompts: float64 [N] per reward."""
        images = [Image.fromarray(image_HWC) for image_HWC in images_NHWC]
        found = {}
        for name, stage in self.stages.items():
            rows: list[Row] = [
                {"image": image, "prompt": prompt}
                for image, prompt in zip(images, prompts, strict=True)
            ]
            in_batches(stage, rows)
            found[name] = np.array([row["score"] for row in rows], dtype=np.float64)
        return found


@dataclass(frozen=True)
class PooledScores:
    """`ImageScores` by actors; cheap to pickle.

    Args:
        groups: the rewards, and the handles of the actors that hold them.
        rank: of the worker that asks: each begins with another actor.
    """

    groups: Sequence[tuple[RewardGroup, Sequence[Any]]]
    rank: int = 0

    def __call__(self, images_NHWC: np.ndarray, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores of N images (uint8) for their prompts: float64 [N] per reward.

        Raises:
            InputError: a reward cannot be loaded.
            NoRoomError: an actor's memory is full, or actors are lost again and again.
        """
        import torch

        found: dict[str, Tensor] = {}
        work = partial(_scored, images_NHWC, prompts, self.rank)
        with ThreadPoolExecutor(len(self.groups)) as threads:  # all kinds of actors at once
            for scores in threads.map(work, self.groups):
                found |= {name: torch.from_numpy(scores_N) for name, scores_N in scores.items()}
        return found


def _scored(
    images_NHWC: np.ndarray,
    prompts: Sequence[str],
    rank: int,
    scored_by: tuple[RewardGroup, Sequence[Any]],
) -> dict[str, np.ndarray]:
    """The scores of one group of rewards: float64 [N] per reward."""
    from raypref.engine.actors import ask

    group, handles = scored_by
    size = group.images
    starts = range(0, len(images_NHWC), size)
    calls = [(images_NHWC[at : at + size], list(prompts[at : at + size])) for at in starts]
    answers = ask(handles, calls, name=group.name, first=rank)
    return {name: np.concatenate([each[name] for each in answers]) for name in group.rewards}

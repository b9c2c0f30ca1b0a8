"""What rewards say of images that a training draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raypref.models.families.base import Autoencoder
from raypref.rewards.base import Embedder, EmbeddingReward, Reward
from raypref.rewards.config import RewardConfig


class Scores(NamedTuple):
    """What is said of N images, on the CPU."""

    by_reward: Mapping[str, Tensor]  # each float64 [N]; NaN: the model gave none
    embedding_ND: Tensor | None  # of unit length, by the first reward that embeds


class ImageScores(Protocol):
    """Scores images: in the training worker, or by actors."""

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], names: Sequence[str]
    ) -> Scores:
        """What some rewards say.

        Args:
            images_NHWC: RGB, uint8.
            prompts: one per image.
            names: of the rewards.
        """


@dataclass(frozen=True)
class LatentScores:
    """What makes rewards of latents."""

    autoencoder: Autoencoder
    scores: ImageScores

    def images(self, latents_NCHW: Tensor) -> np.ndarray:
        """The pixels of latents, to the nearest of 256 levels: uint8 [N, H, W, 3]."""
        with torch.no_grad():
            pixels = self.autoencoder.decode(latents_NCHW)
        return levels(pixels)


def levels(pixels_NCHW: Tensor) -> np.ndarray:
    """RGB in 0..1 to the nearest of 256 levels: uint8 [N, H, W, 3]."""
    found: np.ndarray = (pixels_NCHW.float() * 255).round().to(torch.uint8).cpu().numpy()
    return found.transpose(0, 2, 3, 1)


class WorkerScores:
    """Reward models in this process.

    Each sees batches of its `resources.batch`, the last one padded: a score does not depend on how
    many images a worker has.

    Args:
        rewards: settings by name.
    """

    def __init__(self, rewards: Mapping[str, RewardConfig]) -> None:
        self.rewards = dict(rewards)
        self.models: dict[str, Any] = {name: config.load() for name, config in rewards.items()}
        embedding = (name for name, config in rewards.items() if config.embeds)
        self.embeds = next(embedding, None)

    def __call__(
        self, images_NHWC: np.ndarray, prompts: Sequence[str], names: Sequence[str]
    ) -> Scores:
        """See `ImageScores`."""
        images = [Image.fromarray(pixels) for pixels in images_NHWC]
        asked = [*names] if self.embeds in (None, *names) else [*names, cast(str, self.embeds)]
        values, embeddings = {}, None
        for name in asked:
            batch = self.rewards[name].resources.batch
            own = [
                self._of(name, images[first : first + batch], prompts[first : first + batch])
                for first in range(0, len(images), batch)
            ]
            if name in names:
                scores_N = np.concatenate([score for score, _ in own])
                values[name] = torch.from_numpy(scores_N).double()
            if name == self.embeds:
                embeddings = torch.from_numpy(np.concatenate([e for _, e in own]))
        return Scores(values, embeddings)

    def _of(
        self, name: str, images: Sequence[Image.Image], prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores [n] and, of the reward that embeds, embeddings [n, D], by one padded batch."""
        count, missing = len(images), self.rewards[name].resources.batch - len(images)
        images = [*images, *[images[-1]] * missing]
        prompts = [*prompts, *[prompts[-1]] * missing]
        model = self.models[name]
        if name != self.embeds:
            return cast(Reward, model).score(images, prompts)[:count], None
        embeddings = cast(Embedder, model).embed(images)
        if hasattr(model, "score_embedded"):
            judge = cast(EmbeddingReward, model)
            scores = judge.score_embedded(embeddings, judge.tokens(prompts))
        else:
            scores = cast(Reward, model).score(images, prompts)
        return scores[:count], embeddings[:count]

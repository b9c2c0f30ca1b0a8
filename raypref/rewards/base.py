"""The interface of a reward model, and the transform that scores columns of images with one."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.core.config import Resources
from raypref.core.rows import Row, reject
from raypref.engine.loaded import shared
from raypref.images.decode import as_image, open_png
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Reward(Protocol):
    """Judges how well images show their prompts. Inherit from it: `score` comes with it."""

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        """What the model reads of B images and prompts, made on the CPU.

        Several threads may do so at once: `tokenize` is for that.
        """

    def compute(self, batch: Any) -> np.ndarray:
        """One float32 score an image. NaN: the model gave none."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Scores of B images for their prompts: float32 [B]."""
        return self.compute(self.prepare(images, prompts))


class DifferentiableReward(Reward, Protocol):
    """A reward that is a differentiable function of the pixels (`RewardConfig.differentiable`)."""

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores of B images of one size, with a gradient to their pixels.

        That of an image of 256 levels is near its `score`: Pillow's resizing rounds to levels, this
        does not (`pixels.py`).

        Args:
            pixels_BCHW: RGB in 0..1, on any device, in any precision.
            prompts: one per image.

        Returns:
            [B], on the model's device, in float32 or better.
        """


class Embedder(Protocol):
    """A model whose image embeddings can be had. Inherit from it: `embed` comes with it."""

    def pixels(self, images: Sequence[Image.Image]) -> Any:
        """What the model reads of B images, made on the CPU, by several threads at once."""

    def features(self, pixels: Any) -> np.ndarray:
        """Embeddings of unit length, float32 [B, D]."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings of unit length, float32 [B, D]."""
        return self.features(self.pixels(images))


class EmbeddingReward(Embedder, Protocol):
    """A reward that needs of an image its embedding only."""

    def tokens(self, prompts: Sequence[str]) -> Any:
        """What the model reads of B prompts, made on the CPU, by several threads at once."""

    def score_embedded(self, embeddings: np.ndarray, tokens: Any) -> np.ndarray:
        """Scores of images given by their embeddings, as `embed` returns them: float32 [B]."""


_TOKENIZERS = threading.Lock()


def tokenize(tokenizer: Any, texts: Sequence[str], **options: Any) -> dict[str, Tensor]:
    """Call a tokenizer of transformers; returns its tensors.

    One thread at a time: a tokenizer keeps how it pads and cuts, so that a call with other options
    would change what another thread gets meanwhile.
    """
    with _TOKENIZERS:
        return {**tokenizer(list(texts), return_tensors="pt", **options)}


def moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class Decode:
    """Transform: PNG bytes to a decoded image, once for all transforms after it.

    Args:
        column: holds the PNG bytes, or a struct with them as `bytes`; the image takes its place.
    """

    name = "decode"
    writes = pa.schema([])
    resources = Resources(workers=0, batch=1)

    def __init__(self, column: str) -> None:
        self.column = column
        self.reads: tuple[str, ...] = (column,)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Replace the column's values."""
        for row in rows:
            value = row[self.column]
            row[self.column] = open_png(value["bytes"] if isinstance(value, dict) else value)


class Embed:
    """Transform: add the image's embedding.

    Args:
        config: which model.
        column: holds the image, as PNG bytes or decoded.
    """

    name = "embed"
    writes = pa.schema([("embedding", pa.list_(pa.float32()))])

    def __init__(self, config: RewardConfig, *, column: str) -> None:
        self.config = config
        self.column = column
        self.reads: tuple[str, ...] = (column,)
        self.resources = config.resources

    def setup(self) -> None:
        """Load the model."""
        self.model = shared(self.config, self.config.load)

    def prepare(self, rows: list[Row]) -> Any:
        """The images' pixels."""
        return self.model.pixels([as_image(row[self.column]) for row in rows])

    def compute(self, batch: Any) -> np.ndarray:
        """The embeddings, float32 [B, D]."""
        return self.model.features(batch)

    def finish(self, rows: list[Row], out: np.ndarray) -> None:
        """Fill the column."""
        for row, embedding in zip(rows, out, strict=False):
            row["embedding"] = embedding.tolist()


class Score:
    """Transform: add one score column for every image column.

    Args:
        config: which reward model.
        columns: image column (PNG bytes or decoded images) to the score column it gets.
        prompt: column that holds the prompt.
        embedded: whether the column `embedding` holds what the same model's `Embed` made of the
            one image column: the image is not looked at again.
    """

    name = "score"

    def __init__(
        self,
        config: RewardConfig,
        *,
        columns: Mapping[str, str],
        prompt: str,
        embedded: bool = False,
    ) -> None:
        assert not embedded or len(columns) == 1, "the embedding is that of one image"
        self.config = config
        self.columns = dict(columns)
        self.prompt = prompt
        self.embedded = embedded
        self.reads: tuple[str, ...] = (*self.columns, prompt, *(["embedding"] if embedded else []))
        self.writes = pa.schema([(name, pa.float32()) for name in self.columns.values()])
        self.resources = config.resources

    def setup(self) -> None:
        """Load the reward model."""
        self.reward = shared(self.config, self.config.load)

    def prepare(self, rows: list[Row]) -> list[Any]:
        """What the model reads of each image column."""
        prompts = [row[self.prompt] for row in rows]
        if self.embedded:
            embeddings = np.array([row["embedding"] for row in rows], dtype=np.float32)
            return [(embeddings, cast(EmbeddingReward, self.reward).tokens(prompts))]
        return [
            self.reward.prepare([as_image(row[column]) for row in rows], prompts)
            for column in self.columns
        ]

    def compute(self, batch: list[Any]) -> list[np.ndarray]:
        """The scores of each image column, float32 [B]."""
        if self.embedded:
            return [cast(EmbeddingReward, self.reward).score_embedded(*each) for each in batch]
        return [self.reward.compute(each) for each in batch]

    def finish(self, rows: list[Row], out: list[np.ndarray]) -> None:
        """Fill the score columns; a row with a score that is no number is rejected."""
        for column, scores in zip(self.columns.values(), out, strict=True):
            for row, score in zip(rows, scores, strict=False):
                row[column] = float(score)
                if not math.isfinite(score):
                    reject(row, self.name, "bad_score", f"{column} is {score}")

"""The interface of a reward model, and the stage that scores columns of images with one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.config import Resources
from raypref.images import as_image, open_png
from raypref.loaded import shared
from raypref.rows import Row, padded, reject


class Reward(Protocol):
    """Judges how well images show their prompts."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """One float32 score an image; higher is better. NaN: the model gave none."""


class Embedder(Protocol):
    """A model whose image embeddings can be had."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings of unit length, float32 [B, D]."""


class EmbeddingReward(Embedder, Protocol):
    """A reward that needs of an image its embedding only."""

    def score_embedded(self, embeddings: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Scores of images given by their embeddings, as `embed` returns them: float32 [B]."""


class RewardConfig(Protocol):
    """Settings from which a reward model is loaded."""

    @property
    def resources(self) -> Resources:
        """What a worker that holds the model needs."""

    def check(self) -> None:
        """Look for the weights before any work is done.

        Raises:
            InputError: they are not on disk and cannot be fetched; names the key.
        """

    def load(self) -> Reward:
        """Load the model onto its device."""


class EmbedderConfig(Protocol):
    """Settings from which such a model is loaded."""

    @property
    def resources(self) -> Resources:
        """What a worker that holds the model needs."""

    def check(self) -> None:
        """Look for the weights before any work is done; raises InputError."""

    def load(self) -> Embedder:
        """Load the model onto its device."""


class Decode:
    """Stage: PNG bytes to a decoded image, once for all stages after it.

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
    """Stage: add the image's embedding.

    Args:
        config: which model.
        column: holds the image, as PNG bytes or decoded.
    """

    name = "embed"
    writes = pa.schema([("embedding", pa.list_(pa.float32()))])

    def __init__(self, config: EmbedderConfig, *, column: str) -> None:
        self.config = config
        self.column = column
        self.reads: tuple[str, ...] = (column,)
        self.resources = config.resources

    def setup(self) -> None:
        """Load the model."""
        self.model = shared(self.config, self.config.load)

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        full = padded(rows, self.resources.batch)
        embeddings = self.model.embed([as_image(row[self.column]) for row in full])
        for row, embedding in zip(rows, embeddings, strict=False):
            row["embedding"] = embedding.tolist()


class Score:
    """Stage: add one score column for every image column.

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

    def __call__(self, rows: list[Row]) -> None:
        """Score the rows' images."""
        full = padded(rows, self.resources.batch)
        prompts = [row[self.prompt] for row in full]
        for image_column, score_column in self.columns.items():
            if self.embedded:
                embeddings = np.array([row["embedding"] for row in full], dtype=np.float32)
                scores = cast(EmbeddingReward, self.reward).score_embedded(embeddings, prompts)
            else:
                images = [as_image(row[image_column]) for row in full]
                scores = self.reward.score(images, prompts)
            for row, score in zip(rows, scores, strict=False):
                row[score_column] = float(score)
                if not math.isfinite(score):
                    reject(row, self.name, "bad_score", f"{score_column} is {score}")

"""The interface of a reward model, and the stage that scores columns of images with one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.config import Resources
from raypref.images import open_png
from raypref.rows import Row, padded, reject


class Reward(Protocol):
    """Judges how well images show their prompts."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """One float32 score an image; higher is better. NaN: the model gave none."""


class Embedder(Protocol):
    """A model whose image embeddings can be had."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Embeddings of unit length, float32 [B, D]."""


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


class Embed:
    """Stage: add the image's embedding.

    Args:
        config: which model.
        column: holds the image, as PNG bytes.
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
        self.model = self.config.load()

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        embeddings = self.model.embed([open_png(row[self.column]) for row in rows])
        for row, embedding in zip(rows, embeddings, strict=True):
            row["embedding"] = embedding.tolist()


class Score:
    """Stage: add one score column for every image column.

    Args:
        config: which reward model.
        columns: image column (PNG bytes) to the score column it gets.
        prompt: column that holds the prompt.
    """

    name = "score"

    def __init__(self, config: RewardConfig, *, columns: Mapping[str, str], prompt: str) -> None:
        self.config = config
        self.columns = dict(columns)
        self.prompt = prompt
        self.reads: tuple[str, ...] = (*self.columns, prompt)
        self.writes = pa.schema([(name, pa.float32()) for name in self.columns.values()])
        self.resources = config.resources

    def setup(self) -> None:
        """Load the reward model."""
        self.reward = self.config.load()

    def __call__(self, rows: list[Row]) -> None:
        """Score the rows' images."""
        full = padded(rows, self.resources.batch)
        prompts = [row[self.prompt] for row in full]
        for image_column, score_column in self.columns.items():
            images = [open_png(row[image_column]) for row in full]
            scores = self.reward.score(images, prompts)
            for row, score in zip(rows, scores, strict=False):
                row[score_column] = float(score)
                if not math.isfinite(score):
                    reject(row, self.name, "bad_score", f"{score_column} is {score}")

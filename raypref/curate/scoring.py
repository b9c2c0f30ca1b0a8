"""The first scores of photographs: which transforms make them, and where photographs are read.

    worker  Crop -> (Photographic) -> Score, all in the workers
    pool    fetch, decode, crop, resize to the model's input in tasks on any node, 150 kB per
            photograph through the object store -> Score

Scores are the same to the bit: the model's input is normalised by a table of its 256 levels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from raypref.core.config import InputError
from raypref.core.rows import REJECT, Row, Transform, is_rejected, without_copies
from raypref.curate.photographic import Photographic, PhotographicConfig
from raypref.curate.rescore import QuickScore, exact_score
from raypref.curate.transforms import Crop
from raypref.images.decode import ImageConfig
from raypref.rewards.base import Score
from raypref.rewards.pickscore import PickScore, PickScoreConfig, PickScoreInput, tf32
from raypref.sources.index import SourceConfig

if TYPE_CHECKING:
    from torch import Tensor


def scoring_stages(
    source: SourceConfig,
    images: ImageConfig,
    photographic: PhotographicConfig,
    config: PickScoreConfig,
    *,
    quick: bool,
) -> list[Transform]:
    """From an entry to the first score of its photograph.

    Args:
        source: where photographs are.
        images: size and limits.
        photographic: the filter before it.
        config: which PickScore.
        quick: whether scores are made in `config.quick`.
    """
    score = QuickScore(config) if quick else exact_score(config, "chosen")
    if config.readers == "pool":
        return [PooledScore(score, source, images)]
    judged = [Photographic(photographic)] if photographic.enabled else []
    return [Crop(source, images), *judged, score]


def refuse_pool_beside(photographic: PhotographicConfig, config: PickScoreConfig) -> None:
    """Raise InputError where the filter of photographs needs what readers do not send."""
    if config.readers == "pool" and photographic.enabled:
        raise InputError(
            "pickscore.readers=pool sends PickScore's input alone, and photographic.enabled=true "
            "looks at whole photographs; set pickscore.readers=worker"
        )


class ReadBatch(NamedTuple):
    """What PickScore reads of a batch of photographs, on the CPU."""

    levels: np.ndarray  # uint8 [B, 3, H, W], see `PickScoreInput.levels`
    tokens: dict[str, Tensor]
    dropped: list[tuple[str, str, str] | None]  # stage, reason and message


class ReadPhotographs:
    """What PickScore reads of entries: fetched, decoded, cropped and resized.

    Args:
        source: where the photographs are.
        images: size and limits.
        config: which PickScore.
    """

    def __init__(self, source: SourceConfig, images: ImageConfig, config: PickScoreConfig) -> None:
        self.crop = Crop(source, images)
        self.config = config

    def setup(self) -> None:
        """Find the source, load the processor."""
        self.crop.setup()
        self.input = PickScoreInput(self.config)

    def __call__(self, rows: list[Row]) -> ReadBatch:
        """A dropped photograph is black."""
        read = {id(row): dict(row) for row in without_copies(rows)}
        self.crop(list(read.values()))
        mine = [read[id(row)] for row in rows]
        black = Image.new("RGB", (8, 8))
        return ReadBatch(
            self.input.levels([row.get("chosen", black) for row in mine]),
            self.input.tokens([row["caption"] for row in mine]),
            [_why(row) if is_rejected(row) else None for row in mine],
        )


def _why(row: Row) -> tuple[str, str, str]:
    stage, reason, message = (row[name] for name in REJECT.names)
    return stage, reason, message


class PooledScore:
    """Transform: the score of a photograph as it lies in the source, read by tasks on any node.

    Args:
        score: what scores a photograph.
        source: where the photographs are.
        images: size and limits.
    """

    name = "score"
    reads = Crop.reads

    def __init__(self, score: Score, source: SourceConfig, images: ImageConfig) -> None:
        assert isinstance(score.config, PickScoreConfig)
        self.score = score
        self.config = score.config
        self.preparation = ReadPhotographs(source, images, score.config)
        self.writes = score.writes
        self.resources = score.resources

    def setup(self) -> None:
        """Load the model."""
        self.score.setup()
        self.preparation.setup()

    def prepare(self, rows: list[Row]) -> ReadBatch:
        """Read them here."""
        return self.preparation(rows)

    def compute(self, batch: ReadBatch) -> tuple[np.ndarray, list[Any]]:
        """Scores, float32 [B], and why photographs were dropped."""
        model = self.score.reward
        assert isinstance(model, PickScore)
        quick = isinstance(self.score, QuickScore) and self.score.tf32
        with tf32() if quick else nullcontext():
            return model.score_levels(batch.levels, batch.tokens), batch.dropped

    def finish(self, rows: list[Row], out: tuple[np.ndarray, list[Any]]) -> None:
        """Fill the column or reject."""
        scores, dropped = out[0][: len(rows)], out[1][: len(rows)]
        for row, why in zip(rows, dropped, strict=True):
            if why is not None:
                row.update(zip(REJECT.names, why, strict=True))
        sound = [i for i, why in enumerate(dropped) if why is None]
        self.score.finish([rows[i] for i in sound], [scores[sound]])

"""Trainings on rewards where the pairs' images are of several sizes: what is drawn is square."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_backprop
import test_online
from bucket_pairs import pairs_in_buckets, photographs_in_buckets
from test_loop import TIMES
from training import LORAS, denoiser, pairs, training

from raypref.align.loop import Alone, train
from raypref.align.pair_data import PairData


def in_buckets() -> PairData:
    """With the prompts, and the square's size as it is read from the row of the empty caption."""
    texts = tuple(text for text, _ in photographs_in_buckets())
    return replace(pairs_in_buckets("sd15"), texts=texts, square=(4, 8, 8))


def trained(data: PairData, stage: Any, judge: Any, folder: Path) -> list[dict[str, float]]:
    return train(
        *(denoiser(), data, stage, LORAS["sd15"]),
        name="stage",
        draws="test",
        seed=0,
        folder=str(folder),
        start=None,
        group=Alone(),
        on_step=lambda metrics: None,
        judge=judge,
    )


def test_rollouts_are_those_of_the_prompts_at_the_square_size(tmp_path: Path) -> None:
    data = in_buckets()
    squares = replace(pairs(), embeddings=data.embeddings, texts=data.texts)
    stage, judge = test_online.online(steps=2), test_online.judge()
    ours, theirs = (trained(own, stage, judge, tmp_path / str(id(own))) for own in (data, squares))
    for one, other in zip(ours, theirs, strict=True):
        for key in other.keys() - TIMES:
            assert one[key] == other[key], key
        assert one["reward"] != 0


def test_the_denoising_error_of_a_mixed_batch_is_that_of_each_image_alone(tmp_path: Path) -> None:
    settings = {**test_backprop.COMMON, **test_backprop.FORMS["refl"], "steps": 2, "batch": 5}
    found = [
        trained(
            in_buckets(),
            training(**{**settings, "micro_batch": size}),
            test_backprop.judge("sd15"),
            tmp_path / str(size),
        )
        for size in (1, 5)
    ]
    for one, other in zip(*found, strict=True):
        assert one["denoising_error"] > 0
        for key in other.keys() - TIMES:
            assert one[key] == pytest.approx(other[key], rel=1e-7, abs=1e-10), key

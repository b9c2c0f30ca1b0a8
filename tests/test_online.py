"""Trainings on rewards of their own images: blocks, any split over ranks, resume."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from test_loop import TIMES, ThreadGroup, weights
from training import BASES, LORAS, denoiser, pairs

from raypref.align.image_scores import LatentScores, Scores
from raypref.align.loop import Alone, train
from raypref.align.online_config import OnlineConfig
from raypref.align.residuals import Residuals
from raypref.core.config import setting
from raypref.models.backbone import load_autoencoder


class Weighted(OnlineConfig):
    """advantage * error."""

    objective: Literal["weighted"] = setting("weighted", "advantage times error")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return facts["advantage"] * sides[0].error, {}


def brightness(images: np.ndarray, prompts: Sequence[str], names: Sequence[str]) -> Scores:
    """The mean level of each image; held out: that of its red."""
    assert images.dtype == np.uint8 and len(images) == len(prompts)
    found = {"pickscore": images.mean((1, 2, 3)), "aesthetic": images[..., 0].mean((1, 2))}
    values = {name: torch.from_numpy(found[name]) for name in names}
    return Scores(values, None)


@cache
def judge(family: str = "sd15") -> LatentScores:
    return LatentScores(load_autoencoder(BASES[family], device=torch.device("cpu")), brightness)


def online(**update: object) -> Weighted:
    own = {"steps": 6, "batch": 12, "group": 3, "micro_batch": 4, "lr": 1e-3, "rollout_steps": 3}
    return Weighted(objective="weighted", **{**own, **update})


def run(training: OnlineConfig, folder: Path, *, group=None, network=None, on_step=None):
    data = pairs()
    return train(
        network or denoiser(),
        replace(data, texts=tuple(f"prompt {n}" for n in range(len(data)))),
        training,
        LORAS["sd15"],
        name="stage",
        draws="test-online",
        seed=0,
        folder=str(folder),
        start=None,
        group=group or Alone(),
        on_step=on_step or (lambda metrics: None),
        judge=judge(),
    )


@pytest.mark.parametrize("advantage", ["group", "prompt"])
def test_resume_within_a_block_is_equal_to_the_bit(advantage: str, tmp_path: Path) -> None:
    training = online(
        steps=9,
        checkpoint_every=4,
        reuse=3,
        policy_lag=3,
        policy_keep=0.5,
        advantage=advantage,
        held_out=("aesthetic",),
        held_out_every=6,
        timesteps=2,
        group=3,
    )
    straight = run(training, tmp_path / "straight")

    class KilledError(Exception):
        pass

    def die(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(training, tmp_path / "killed", on_step=die)
    again: list[float] = []
    resumed = run(training, tmp_path / "killed", on_step=lambda m: again.append(m["step"]))
    assert again == [5, 6, 7, 8, 9]
    for ours, theirs in zip(resumed, straight, strict=True):
        for key in theirs.keys() - TIMES:
            assert ours[key] == theirs[key], key
    a, b = weights(tmp_path / "killed"), weights(tmp_path / "straight")
    assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.parametrize("advantage", ["group", "batch", "prompt"])
@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_gives_the_same_run(world: int, advantage: str, tmp_path: Path) -> None:
    training = online(steps=4, reuse=2, policy_lag=2, advantage=advantage, held_out=("aesthetic",))
    reference = run(training, tmp_path / "one")
    barrier, slots = threading.Barrier(world), [None] * world
    histories: dict[int, list[dict[str, float]]] = {}
    networks = [denoiser() for _ in range(world)]

    def work(rank: int) -> None:
        group = ThreadGroup(rank, world, barrier, slots)  # type: ignore[arg-type]
        histories[rank] = run(training, tmp_path / "many", group=group, network=networks[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(world):
        for ours, theirs in zip(histories[rank], reference, strict=True):
            for key in theirs.keys() - TIMES:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-9), key
    a, b = weights(tmp_path / "many"), weights(tmp_path / "one")
    assert all(torch.allclose(a[key], b[key], atol=1e-7) for key in b)

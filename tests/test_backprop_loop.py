"""Trainings on gradients of rewards through the loop: any split, resume, what is refused."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from test_backprop import run, stage_of
from test_loop import TIMES, ThreadGroup, weights
from training import denoiser, training

from raypref.align.watch import DivergedError
from raypref.core.config import InputError, load
from raypref.run.config import RunConfig

SPLIT = {"steps": 3, "batch": 6, "group": 2, "held_out": ("clipscore",), "held_out_every": 2}


@pytest.mark.parametrize(
    "form, world, micro_batch, recompute",
    [
        ("draft 2", 1, 1, False),
        ("draft 2", 2, 2, True),
        ("draft LV", 3, 6, True),
        ("alignprop", 3, 6, True),
        ("refl", 3, 6, True),
        ("refl deep", 1, 1, False),
        ("refl deep", 2, 2, True),
    ],
)
def test_any_split_of_the_batch_gives_the_same_run(
    form: str, world: int, micro_batch: int, recompute: bool, tmp_path: Path
) -> None:
    whole = stage_of(form, **SPLIT, micro_batch=6)
    reference = run(whole, tmp_path / "one")
    stage = stage_of(form, **SPLIT, micro_batch=micro_batch, recompute=recompute)
    barrier, slots = threading.Barrier(world), [None] * world
    histories: dict[int, list[dict[str, float]]] = {}
    networks = [denoiser() for _ in range(world)]

    def work(rank: int) -> None:
        group = ThreadGroup(rank, world, barrier, slots)  # type: ignore[arg-type]
        histories[rank] = run(stage, tmp_path / "many", group=group, network=networks[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(world):
        for ours, theirs in zip(histories[rank], reference, strict=True):
            assert ours.keys() == theirs.keys()
            for key in theirs.keys() - TIMES:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-9), key
    expected = {"reward", "reward_std", "diversity", "reward/pickscore", "held_out/clipscore"}
    assert expected <= reference[0].keys()
    assert reference[1]["held_out/clipscore"] == reference[0]["held_out/clipscore"]
    assert reference[2]["held_out/clipscore"] != reference[0]["held_out/clipscore"]
    assert ("kl" in reference[0]) == bool(whole.kl)


@pytest.mark.parametrize("form", ["draft 2", "refl"])
def test_resume_is_equal_to_the_bit(form: str, tmp_path: Path) -> None:
    stage = stage_of(
        form, steps=7, batch=2, checkpoint_every=3, held_out=("clipscore",), held_out_every=5
    )
    straight = run(stage, tmp_path / "straight")

    class KilledError(Exception):
        pass

    def die(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(stage, tmp_path / "killed", tell=die)
    again: list[float] = []
    resumed = run(stage, tmp_path / "killed", tell=lambda m: again.append(m["step"]))
    assert again == [4, 5, 6, 7]
    for ours, theirs in zip(resumed, straight, strict=True):
        for key in theirs.keys() - TIMES:
            assert ours[key] == theirs[key], key
    a, b = weights(tmp_path / "killed"), weights(tmp_path / "straight")
    assert all(torch.equal(a[key], b[key]) for key in b)


def test_a_reward_without_a_gradient_is_refused_with_those_that_have_one() -> None:
    settings = load(RunConfig, "tiny", [])
    stage = training("draft", rewards={"unifiedreward": 1.0})
    with pytest.raises(
        InputError, match=r"^train\.mine\.rewards: unifiedreward .* pickscore, "
    ) as e:
        stage.check_rewards(settings.rewards, key="train.mine")
    assert "deqa" not in str(e.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": 4, "batch": 6}, "group=4"),
        ({"steps_with_gradient": 60}, "steps_with_gradient=60"),
        ({"noises": 2, "steps_with_gradient": 2}, "noises=2"),
        ({"min_diversity": 0.5}, "min_diversity"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training("draft", **settings)


def test_it_stops_when_it_is_too_far_from_the_reference(tmp_path: Path) -> None:
    stage = stage_of("draft 2", kl=0.0, max_kl=1e-9, steps=5, lr=1e-2)
    with pytest.raises(DivergedError, match="max_kl"):
        run(stage, tmp_path)

"""Trainings on rewards of their own images: blocks, any split over ranks, resume."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from test_loop import TIMES, ThreadGroup, weights
from training import BASES, LORAS, denoiser, pairs

from raypref.align.image_scores import LatentScores, Scores
from raypref.align.loop import Alone, train
from raypref.align.online import Rollouts
from raypref.align.online_config import OnlineConfig
from raypref.align.residuals import (
    LEARNER,
    POLICY,
    REFERENCE,
    Draw,
    Residuals,
    Samples,
    measure,
)
from raypref.core.config import setting
from raypref.models import adapters
from raypref.models.backbone import load_autoencoder


class Weighted(OnlineConfig):
    """advantage * error."""

    objective: Literal["weighted"] = setting("weighted", "advantage times error")

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return facts["advantage"] * sides[0].error, {}


def brightness(images: np.ndarray, prompts: Sequence[str], names: Sequence[str]) -> Scores:
    """The mean level of each image; held out: that of its red. By imagereward some have none."""
    assert images.dtype == np.uint8 and len(images) == len(prompts)
    mean = images.mean((1, 2, 3))
    unscored = [prompt in ("prompt 1", "prompt 4") for prompt in prompts]
    unscored |= images[:, 0, 0, 0] % 3 == 0
    found = {
        "pickscore": mean,
        "aesthetic": images[..., 0].mean((1, 2)),
        "imagereward": np.where(unscored, np.nan, mean),
    }
    values = {name: torch.from_numpy(found[name]) for name in names}
    return Scores(values, None)


@cache
def judge(family: str = "sd15") -> LatentScores:
    return LatentScores(load_autoencoder(BASES[family], device=torch.device("cpu")), brightness)


def online(**update: object) -> Weighted:
    own = {"steps": 6, "batch": 12, "group": 3, "micro_batch": 4, "lr": 1e-3, "rollout_steps": 3}
    return Weighted(objective="weighted", **{**own, **update})


def run(
    training: OnlineConfig,
    folder: Path,
    *,
    group=None,
    network=None,
    on_step=None,
    scores=brightness,
    family="sd15",
):
    data = pairs(family=family)
    return train(
        network or denoiser(family),
        replace(data, texts=tuple(f"prompt {n}" for n in range(len(data)))),
        training,
        LORAS[family],
        name="stage",
        draws="test-online",
        seed=0,
        folder=str(folder),
        start=None,
        group=group or Alone(),
        on_step=on_step or (lambda metrics: None),
        judge=replace(judge(family), scores=scores),
    )


def together(world: int, training: OnlineConfig, folder: Path) -> dict[int, list[dict]]:
    """The histories of so many ranks."""
    barrier, slots = threading.Barrier(world), [None] * world
    networks, histories = [denoiser() for _ in range(world)], {}

    def work(rank: int) -> None:
        group = ThreadGroup(rank, world, barrier, slots)  # type: ignore[arg-type]
        histories[rank] = run(training, folder, group=group, network=networks[rank])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return histories


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
    histories = together(world, training, tmp_path / "many")
    for rank in range(world):
        for ours, theirs in zip(histories[rank], reference, strict=True):
            for key in theirs.keys() - TIMES:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-9), key
    a, b = weights(tmp_path / "many"), weights(tmp_path / "one")
    assert all(torch.allclose(a[key], b[key], atol=1e-7) for key in b)


SCORES = {"imagereward": 1.0, "pickscore": 0.5}


def test_images_without_a_score_are_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Also of a prompt none of whose images has one: it is on another rank than the others."""
    training = online(steps=3, advantage="batch", rewards=SCORES, batch=30)
    one, *ranks = [together(world, training, tmp_path / str(world)) for world in (1, 2)]
    for history in (histories for world in ranks for histories in world.values()):
        for ours, theirs in zip(history, one[0], strict=True):
            assert 0.2 < ours["unscored"] < 0.9
            assert np.isfinite(list(ours.values())).all()
            for key in theirs.keys() - TIMES:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-6, abs=1e-9), key


def test_held_out_rewards_are_measured_now_and_then_and_change_nothing(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def note(images: np.ndarray, prompts: Sequence[str], names: Sequence[str]) -> Scores:
        asked.append([*names])
        return brightness(images, prompts, names)

    own = {"steps": 6, "batch": 3, "reuse": 2, "policy_lag": 2, "checkpoint_every": 2}
    without = online(**own)
    with_it = online(**own, held_out=("aesthetic",), held_out_every=4)
    plain = run(without, tmp_path / "plain")
    measured = run(with_it, tmp_path / "measured", scores=note)
    assert asked == [["pickscore", "aesthetic"], ["pickscore"], ["pickscore", "aesthetic"]]
    for ours, theirs in zip(measured, plain, strict=True):
        assert all(ours[key] == theirs[key] for key in theirs.keys() - TIMES)
    told = [row["held_out/aesthetic"] for row in measured]
    assert told[0] == told[1] == told[2] == told[3] != told[4] == told[5]
    # It is no part of the result: a training that is resumed may have others.
    for before, after, folder in ((without, with_it, "added"), (with_it, without, "given up")):
        run(before.model_copy(update={"steps": 4}), tmp_path / folder)
        history = run(after, tmp_path / folder)
        assert [row["loss"] for row in history] == [row["loss"] for row in plain]
        known = [np.isfinite(row.get("held_out/aesthetic", np.nan)) for row in history]
        assert known == [folder != "added"] * 4 + [folder == "added"] * 2


def test_an_image_is_drawn_and_reused_and_its_timesteps_are_new(tmp_path: Path) -> None:
    """What a loss sees of three steps that reuse images, and of the next block."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Seen(Weighted):
        def samples(self, denoiser, block, images, generators):  # type: ignore[no-untyped-def]
            made = super().samples(denoiser, block, images, generators)
            assert len(made.timesteps_B) == 2 * len(images)
            assert torch.equal(made.facts["reward"], block.reward_N[[*images] * 2])
            seen.append((block.latents_NCHW, made.timesteps_B))
            return made

    run(
        Seen(**online(timesteps=2, batch=6, reuse=3, policy_lag=3, steps=4).model_dump()),
        tmp_path,
    )
    latents, timesteps = zip(*seen, strict=True)
    assert torch.equal(latents[0], latents[2]) and not torch.equal(latents[2], latents[3])
    assert len({tuple(each.tolist()) for each in timesteps}) == 4


def test_an_inpainting_base_is_guided_with_its_holes(tmp_path: Path) -> None:
    training = online(steps=1, batch=3, rollout_steps=2, guidance=3.0)
    history = run(training, tmp_path, family="sd15_inpaint")
    assert history[0]["reward_std"] > 0


class Linear(OnlineConfig):
    """The deviation of the group's errors, written as a loss on whole groups."""

    whole_groups: ClassVar[bool] = True
    objective: Literal["linear"] = setting("linear", "for tests")

    def measured(self, sides: Sequence[Residuals]) -> torch.Tensor:
        return sides[0].error

    def coefficients(
        self, numbers_NG: torch.Tensor, facts: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        assert facts["reward"].shape == numbers_NG.shape == facts["advantage"].shape
        return 2 * (numbers_NG - numbers_NG.mean(1, keepdim=True))  # of the sum of squares

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return facts["coefficient"] * sides[0].error, {}


def test_a_loss_on_whole_groups_has_the_gradient_of_the_loss_at_once() -> None:
    """However the group is split into micro-batches; beside autograd through the whole group."""
    network = denoiser()
    adapters.attach(network.module, LORAS["sd15"], names=(LEARNER, REFERENCE, POLICY), seed=0)
    learner = adapters.vector(network.module, LEARNER)
    with torch.no_grad():
        learner.add_(torch.randn(learner.shape, generator=torch.Generator().manual_seed(1)) / 50)
    data = replace(pairs(), texts=tuple(f"prompt {n}" for n in range(10)))

    def samples(training: OnlineConfig) -> list[Samples]:
        rollouts = Rollouts(
            *(network, data, training), judge=judge(), name="x", seed=0, group=Alone()
        )
        draws = [Draw(n // 3, torch.Generator().manual_seed(n)) for n in range(6)]
        return [*rollouts.samples(draws, range(6), 0)]

    def measured(some: Samples) -> torch.Tensor:
        return measure(network, some)[0].error

    own = {"batch": 6, "group": 3, "rollout_steps": 2, "objective": "linear"}
    whole = samples(Linear(**own, micro_batch=6))
    errors = torch.cat([measured(some) for some in whole]).view(-1, 3)
    (expected,) = torch.autograd.grad(
        (errors - errors.mean(1, keepdim=True)).square().sum(), learner
    )
    for micro_batch in (1, 4, 6):
        training = Linear(**own, micro_batch=micro_batch)
        total = torch.zeros_like(learner)
        for some in (part for all_ in samples(training) for part in all_.split(micro_batch)):
            loss_B, _ = training.loss(measure(network, some), some.facts)
            (gradient,) = torch.autograd.grad(loss_B.sum(), learner)
            total += gradient
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(total, expected, rtol=1e-7, atol=1e-12)

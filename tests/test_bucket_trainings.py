"""Trainings on pairs of several sizes equal plain ones that know every sample alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from bucket_pairs import SIZES, pairs_in_buckets, photographs_in_buckets
from plain_comparison import compare
from test_loop import TIMES, ThreadGroup
from training import denoiser, run, training

from raypref.align.config import TrainingConfig
from raypref.align.loop import _draw_of

# A step's batch holds samples of all sizes.
BATCH = {"steps": 4, "batch": 5, "micro_batch": 2, "lr": 1e-3}
FORMS: dict[str, dict[str, Any]] = {
    "dpo": {"objective": "dpo", "beta": 100.0},
    "images": {"objective": "kto", "sample": "image", "beta": 100.0},
    "states": {"objective": "dro", "rollout_steps": 3, "batch": 6, "rollout_stops": 2},
    "curriculum": {"objective": "ipo", "beta": 10.0, "curriculum": "easy_first"},
}


def stage_of(form: str, **settings: Any) -> TrainingConfig:
    return training(**{**BATCH, **FORMS[form], **settings})


@pytest.mark.parametrize(
    "family, form",
    [
        *(("sd15", form) for form in FORMS),
        ("sd35m", "states"),
        *((family, "dpo") for family in ("sdxl", "flux", "z_image", "qwen_image", "flux2_klein")),
        *((family, "dpo") for family in ("sd15_inpaint", "flux_fill")),
    ],
)
def test_a_batch_of_several_sizes_equals_a_plain_training(
    family: str, form: str, tmp_path: Path
) -> None:
    hole = {"region": "hole"} if "_inpaint" in family else {}
    photos, data = photographs_in_buckets(), pairs_in_buckets(family)
    compare(family, stage_of(form, **hole), tmp_path, photos=photos, data=data)


@pytest.mark.parametrize("form", ["dpo", "images", "states"])
@pytest.mark.parametrize("world, micro_batch", [(1, 1), (2, 2)])
def test_any_split_of_a_batch_of_several_sizes_gives_the_same_run(
    form: str, world: int, micro_batch: int, tmp_path: Path
) -> None:
    data = pairs_in_buckets("sd15")
    whole = stage_of(form, micro_batch=6)
    expected = run(whole, str(tmp_path / "one"), data=data)
    split = whole.model_copy(update={"micro_batch": micro_batch})
    barrier, slots = threading.Barrier(world), [None] * world
    histories: dict[int, list[Any]] = {}
    networks = [denoiser() for _ in range(world)]

    def work(rank: int) -> None:
        group = ThreadGroup(rank, world, barrier, slots)  # type: ignore[arg-type]
        folder = str(tmp_path / "split")
        histories[rank] = run(split, folder, group=group, network=networks[rank], data=data)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(histories) == world, "a rank failed"
    for history in histories.values():
        for ours, theirs in zip(history, expected, strict=True):
            for key in theirs.keys() - TIMES:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-7, abs=1e-10), key


def test_a_step_draws_the_pairs_that_it_draws_of_squares() -> None:
    data, stage = pairs_in_buckets("sd15"), stage_of("dpo")
    draws = [_draw_of(i, 1, stage, len(data), name="d", seed=0).pair for i in range(stage.batch)]
    groups = data.by_shape(draws)
    assert sorted(place for group in groups for place in group) == [*range(stage.batch)]
    assert all(group == sorted(group) for group in groups) and len(groups) > 1
    for group in groups:
        assert len({SIZES[draws[place] % 3] for place in group}) == 1
        width, height = SIZES[draws[group[0]] % 3]
        shape = data.shape_of([draws[place] for place in group])
        assert shape == (4, height // 8, width // 8)


def test_rollouts_have_the_size_of_the_photograph_and_the_levels_of_that_size(
    tmp_path: Path,
) -> None:
    """A flow that shifts its levels by the number of tokens does so for each size."""
    network: Any = denoiser("flux")
    asked, seen = [], []
    timesteps, predict = network.sampling_timesteps, network.predict

    def sampling_timesteps(steps: int, shape: tuple[int, ...]) -> Any:
        asked.append(shape)
        return timesteps(steps, shape)

    def predicted(x: torch.Tensor, *rest: Any) -> Any:
        seen.append(tuple(x.shape[1:]))
        assert x.shape[1:] == asked[-1], "latents of a rollout and after it"
        return predict(x, *rest)

    network.sampling_timesteps, network.predict = sampling_timesteps, predicted
    stage = training("spin", rollout_steps=2, **{**BATCH, "steps": 1})
    run(stage, str(tmp_path), network=network, family="flux", data=pairs_in_buckets("flux"))
    assert {*asked} == {*seen} == {(16, h // 8, w // 8) for w, h in SIZES}

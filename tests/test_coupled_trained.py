"""Trainings by every objective on steps of paths, beside a plain implementation; its windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plain_coupled import COUPLED, PlainCoupled
from test_loop import TIMES, weights
from test_online import run
from test_online_trained import compare
from training import STEPS, training

from raypref.align.objectives.coupled import CoupledConfig
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import OnlineConfig

COMMON = {"steps": 20, "group": 3, "rollout_steps": 3, "timesteps": 1, "micro_batch": 4, "lr": 1e-3}


def stage_of(name: str, **settings: object) -> CoupledConfig:
    """With one prompt per step."""
    one = training(name.partition("-")[0], **{**COMMON, "batch": 12, **settings})
    assert isinstance(one, CoupledConfig)
    return one.model_copy(update={"batch": one.samples_per_prompt})


@pytest.mark.parametrize("family", STEPS)
@pytest.mark.parametrize("name", COUPLED)
def test_steps_on_paths_equal_a_plain_implementation(
    name: str, family: str, tmp_path: Path
) -> None:
    stage = stage_of(name, **COUPLED[name].settings, steps=STEPS[family])
    history, _ = compare(family, stage, tmp_path, kind=PlainCoupled)
    if "clip_range" in COUPLED[name].settings:
        assert 0 < np.mean([row["clipped"] for row in history]) < 1
    if not stage.kl and stage.against != "ref":
        assert "kl" not in history[0]


def test_every_objective_on_paths_has_a_plain_one() -> None:
    coupled = {n for n, kind in OBJECTIVES.items() if issubclass(kind, CoupledConfig)}
    assert {name.partition("-")[0] for name in COUPLED} == coupled


def test_mix_grpo_with_a_window_over_all_steps_is_flow_grpo(tmp_path: Path) -> None:
    settings = {"steps": 4, "eta": 0.6, "kl": 0.1, "guidance": 1.0, "shared_start": True}
    settings |= {"timesteps": 2, "window_every": 1}
    mixed = stage_of("mix_grpo", **settings, window_size=2)
    del settings["window_every"]
    histories = [
        run(stage, tmp_path / stage.objective)
        for stage in (mixed, stage_of("flow_grpo", **settings))
    ]
    for ours, theirs in zip(*histories, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == theirs[key] for key in ours.keys() - TIMES)
    one, other = (weights(tmp_path / name) for name in ("mix_grpo", "flow_grpo"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_path_is_made_again_after_a_kill(tmp_path: Path) -> None:
    stage = stage_of("flow_grpo", steps=7, reuse=3, policy_lag=3, checkpoint_every=4, kl=0.0)
    straight = run(stage, tmp_path / "straight")

    class KilledError(Exception):
        pass

    def die(metrics: dict[str, float]) -> None:
        if metrics["step"] == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run(stage, tmp_path / "killed", on_step=die)
    resumed = run(stage, tmp_path / "killed")
    for ours, theirs in zip(resumed, straight, strict=True):
        assert all(ours[key] == theirs[key] for key in theirs.keys() - TIMES)
    one, other = (weights(tmp_path / name) for name in ("killed", "straight"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_window_slides_and_begins_anew() -> None:
    stage = training("mix_grpo", rollout_steps=7, window_size=3, window_every=2, timesteps=2)
    assert [stage.window(step).start for step in range(9)] == [0, 0, 1, 1, 2, 2, 3, 3, 0]  # type: ignore[attr-defined]
    wide = stage.model_copy(update={"window_stride": 2})
    assert [wide.window(step).start for step in range(6)] == [0, 0, 2, 2, 0, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name, settings, says",
    [
        ("ddpo", {"rollout_steps": 3, "timesteps": 4}, "timesteps=4: 2 of rollout_steps=3"),
        ("mix_grpo", {"rollout_steps": 4}, "window_size=4: it must be less than rollout_steps=4"),
        ("mix_grpo", {"timesteps": 8}, "timesteps=8: 4 of rollout_steps=25"),
        (
            "ddpo",
            {"estimator": "score_function", "policy_lag": 2},
            "policy_lag=2: the score_function estimator",
        ),
        ("d3po", {"batch": 6}, "batch=6: .*a multiple of 4"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    name: str, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        training(name, **settings)


def test_the_reference_costs_nothing_where_it_is_not_read() -> None:
    for name, kl in (("ddpo", 0.0), ("flow_grpo", 0.0), ("flow_grpo", 0.1)):
        stage = training(name, kl=kl)
        assert isinstance(stage, OnlineConfig)
        assert stage.against == ("ref" if kl else "")

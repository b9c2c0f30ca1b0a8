"""Every objective through the training loop; learning-rate schedules; what SFT leaves out."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from plain_comparison import compare
from plain_objectives import ENTRIES
from safetensors.torch import load_file
from training import OFFLINE, STEPS, denoiser, run, training

from raypref.align.objectives.registry import OBJECTIVES
from raypref.core.config import InputError, load
from raypref.run.config import RunConfig

PLAIN = {"steps": 2, "batch": 3, "micro_batch": 3, "lr": 1e-3}
# Of the first step, where learner and reference are one: the formulas at logit 0.
FIRST = {"ipo": 0.25, "hinge": 1.0, "kto": 1.0}


@pytest.mark.parametrize("name", ["ipo", "hinge", "kto", "dpo_sft", "sft"])
def test_an_objective_trains_and_does_not_depend_on_the_split(name: str, tmp_path: Path) -> None:
    stage = training(objective=name, **PLAIN)  # type: ignore[arg-type]
    whole = run(stage, str(tmp_path / "whole"))
    split = run(stage.model_copy(update={"micro_batch": 1}), str(tmp_path / "split"))
    for ours, theirs in zip(split, whole, strict=True):
        for key in theirs.keys() - {"seconds", "images_per_second"}:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-7, abs=1e-10), key
    first = whole[0]
    assert first["chosen_gap"] == 0.0
    assert first["grad_norm"] > 0
    error = first["ref_chosen"]
    expected = {**FIRST, "sft": error, "dpo_sft": math.log(2) + 0.1 * 1000 * error}[name]
    assert first["loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("family", STEPS)
@pytest.mark.parametrize("name", ENTRIES)
def test_steps_equal_a_plain_implementation(name: str, family: str, tmp_path: Path) -> None:
    common = {"steps": STEPS[family], "batch": 1, "lr": 1e-3}
    stage = training(name.partition("-")[0], **common, **ENTRIES[name].settings)
    compare(family, stage, tmp_path)


@pytest.mark.parametrize("family", ["flux2_klein", "qwen_image"])
def test_20_steps_of_dpo_equal_a_plain_implementation(family: str, tmp_path: Path) -> None:
    stage = training("dpo", steps=20, batch=1, lr=1e-3, **ENTRIES["dpo"].settings)
    compare(family, stage, tmp_path)


AVERAGE = {"objective": "kto", "reference_point": "average", "desirable_weight": 3.0}
FORMS: dict[str, dict[str, Any]] = {
    "kto of images": AVERAGE | {"sample": "image", "batch": 2},
    "kto loss averse": {"objective": "kto", "utility": "loss_averse", "undesirable_weight": 1.3},
    "kto risk seeking": AVERAGE | {"utility": "risk_seeking"},
    "a reference that follows": {"reference": "ema", "reference_decay": 0.8},
    "a curriculum": {"curriculum": "easy_first", "curriculum_end": 0.8},
}


@pytest.mark.parametrize("family", STEPS)
@pytest.mark.parametrize("form", FORMS)
def test_20_steps_of_other_forms_equal_a_plain_implementation(
    form: str, family: str, tmp_path: Path
) -> None:
    settings = {"steps": 20, "batch": 1, "lr": 1e-3, "beta": 100.0, **FORMS[form]}
    history, _ = compare(family, training(**settings), tmp_path)
    if settings.get("reference_point") == "average":
        points = [row["reference_point"] for row in history]
        assert points[:2] == [0, 0]  # of step 1 it is not known yet
        assert max(points) > 0


def test_every_objective_has_an_entry() -> None:
    names = {name.partition("-")[0] for name in ENTRIES}
    # `dro` has `test_exactness.py`; what learns from rewards has `test_online_trained.py`.
    assert names == {*OFFLINE} - {"dro"}


def test_sft_trains_on_the_photograph_alone(tmp_path: Path) -> None:
    [first, second] = run(training(objective="sft", **PLAIN), str(tmp_path))  # type: ignore[arg-type]
    assert not {"ref_rejected", "rejected_gap", "diff", "implicit_accuracy"} & first.keys()
    assert second["loss"] == pytest.approx(second["ref_chosen"] + second["chosen_gap"])


def test_every_objective_of_the_settings_is_there() -> None:
    for name in OBJECTIVES:
        assert training(objective=name).objective == name
    with pytest.raises(InputError, match=r"^train\.mine\.objective='ppo': use dro, dpo, "):
        load(RunConfig, "tiny", ["train.mine.objective=ppo"])


@pytest.mark.parametrize(
    "schedule, theirs",
    [("constant", "constant_with_warmup"), ("linear", "linear"), ("cosine", "cosine")],
)
@pytest.mark.parametrize("warmup", [0, 4])
def test_a_schedule_is_that_of_diffusers(schedule: str, theirs: str, warmup: int) -> None:
    stage = training(schedule=schedule, steps=20, warmup_steps=warmup, lr=3e-4)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    scheduler = get_scheduler(
        theirs, optimizer, num_warmup_steps=warmup, num_training_steps=stage.steps
    )
    for step in range(stage.steps):
        expected = scheduler.get_last_lr()[0]
        assert stage.learning_rate(step) == pytest.approx(expected, rel=1e-12, abs=1e-18)
        optimizer.step()
        scheduler.step()


def test_a_resumed_run_goes_on_in_its_schedule(tmp_path: Path) -> None:
    stage = training(
        objective="kto", steps=5, batch=2, lr=1e-3, schedule="cosine", checkpoint_every=2
    )
    straight = run(stage, str(tmp_path / "straight"))

    class KilledError(Exception):
        pass

    def die(metrics: dict[str, float]) -> None:
        if metrics["step"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        run(stage, str(tmp_path / "killed"), on_step=die)
    resumed = run(stage, str(tmp_path / "killed"))
    assert [m["lr"] for m in resumed] == [m["lr"] for m in straight]
    a, b = (
        load_file(tmp_path / name / "pytorch_lora_weights.safetensors")
        for name in ("killed", "straight")
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name, passes", [("dpo", 2), ("mapo", 1), ("simpo", 1)])
def test_what_is_compared_with_nothing_makes_no_pass_of_the_reference(
    name: str, passes: int, tmp_path: Path
) -> None:
    network, calls = denoiser(), []
    network.module.register_forward_hook(lambda *_: calls.append(1))
    first = run(training(name, **PLAIN), str(tmp_path), network=network)[0]  # type: ignore[arg-type]
    assert len(calls) == 2 * passes
    read = {"ref_chosen", "ref_rejected", "chosen_gap", "rejected_gap"}
    own = {"chosen_error", "rejected_error"}
    assert (first.keys() & (read | own)) == (read if passes == 2 else own)


def test_spin_is_compared_with_its_policy(tmp_path: Path) -> None:
    stage = training("spin", steps=5, batch=2, lr=1e-3, rollout_steps=2, policy_lag=3)
    history = run(stage, str(tmp_path))
    # The learner equals its opponent where an iteration begins.
    zero = [row["chosen_gap"] == row["rejected_gap"] == 0 for row in history]
    assert zero == [True, False, False, True, False]

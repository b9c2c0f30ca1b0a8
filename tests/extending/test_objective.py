"""The objective of docs/extending.md: one file outside the package, trained through the loop."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_objective_contract as contract
import torch
from training import LORA, denoiser, pairs, training
from worked_examples import ROOT, example, registered, run_python

from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.watch import StepMetrics
from raypref.core.config import InputError, load, results_of
from raypref.core.key_help import describe
from raypref.run.config import RunConfig

PLAIN: dict[str, Any] = {"steps": 2, "lr": 1e-3, "beta": 500.0}
CHOSEN = torch.linspace(20, 23, 10, dtype=torch.float64)
REJECTED = torch.linspace(19, 18, 10, dtype=torch.float64)


@pytest.fixture
def margin_dpo(tmp_path: Path) -> Iterator[None]:
    """The objective, registered."""
    with registered("margin_dpo", example("Add an objective"), OBJECTIVES, tmp_path):
        yield


def trained(objective: str, folder: Path, **settings: Any) -> list[StepMetrics]:
    """Two steps on ten pairs with scores, the same samples for any objective."""
    scores = {"pickscore_chosen": CHOSEN, "pickscore_rejected": REJECTED}
    return train(
        denoiser(),
        replace(pairs(), facts=scores),
        training(objective, **PLAIN, **settings),
        LORA,
        name="mine",
        draws="test",
        seed=0,
        folder=str(folder),
        start=None,
        group=Alone(),
        on_step=lambda metrics: None,
    )


def test_its_loss_is_the_formula(margin_dpo: None, tmp_path: Path) -> None:
    """Of the one sample of each step, from its errors and the scores of its pair."""
    steps = trained("margin_dpo", tmp_path / "lora", batch=1, micro_batch=1, scale=0.3)
    margins = [0.3 * float(c - r) for c, r in zip(CHOSEN, REJECTED, strict=True)]
    for step in steps:
        [margin] = [m for m in margins if m == pytest.approx(step["margin"], rel=1e-12)]
        logit = -500.0 / 2 * (step["chosen_gap"] - step["rejected_gap"])
        expected = -math.log(1 / (1 + math.exp(-(logit - margin))))
        assert step["loss"] == pytest.approx(expected, rel=1e-9)
    assert steps[0]["chosen_gap"] == 0 != steps[1]["chosen_gap"]


def test_without_a_margin_it_is_diffusion_dpo(margin_dpo: None, tmp_path: Path) -> None:
    ours = trained("margin_dpo", tmp_path / "ours", batch=4, micro_batch=2, scale=0.0)
    theirs = trained("dpo", tmp_path / "dpo", batch=4, micro_batch=4)
    wide = trained("margin_dpo", tmp_path / "wide", batch=4, micro_batch=4, scale=1.0)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-9)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-7)
    assert wide[0]["grad_norm"] > 1.1 * ours[0]["grad_norm"], "a margin pushes on"


def test_it_passes_the_tests_of_every_objective(margin_dpo: None) -> None:
    contract.test_its_settings_are_those_of_one_training("margin_dpo")
    contract.test_its_loss_is_one_number_per_sample_with_a_gradient("margin_dpo")
    contract.test_a_samples_loss_does_not_depend_on_the_others("margin_dpo")


def test_its_settings_are_those_of_a_training(margin_dpo: None) -> None:
    given = ["trainings=['mine']", "train.mine.objective=margin_dpo", "train.mine.scale=0.2"]
    settings = load(RunConfig, "tiny", given)
    assert results_of({"t": settings.train["mine"]})["t.scale"] == 0.2
    [text] = [text for text in describe(RunConfig) if text.startswith("train.NAME.scale ")]
    assert text.endswith("margin_dpo: margin of the logit for each point of PickScore")
    with pytest.raises(InputError, match=r"train\.stage2\.scale is a setting of .* margin_dpo"):
        load(RunConfig, "tiny", ["train.stage2.scale=0.2"])


def test_a_worker_finds_it_by_its_module(margin_dpo: None, tmp_path: Path) -> None:
    """Ray Train's workers get a job as a pickle: it names the module, which must be found there."""
    from ray import cloudpickle

    job = cloudpickle.dumps(training("margin_dpo", scale=0.2))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).scale)"
    without = os.environ | {"PYTHONPATH": str(ROOT)}
    found = without | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    assert run_python("-c", code, variables=found, given=job) == (0, "0.2\n")
    status, said = run_python("-c", code, variables=without, given=job)
    assert status == 1 and "No module named 'margin_dpo'" in said

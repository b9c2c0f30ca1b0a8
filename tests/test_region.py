"""Errors in the hole alone: the same training with plain means, whatever the objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain_comparison import compare
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import BASES, OFFLINE, facts_of, pairs, run, training

from raypref.align.residuals import Samples, Side, measure, within
from raypref.core.config import InputError, load, results_of
from raypref.models import adapters
from raypref.models.families.registry import FAMILIES, INPAINTING, family
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run

TWENTY = {"steps": 20, "batch": 1, "lr": 1e-3}
DPO = training("dpo", beta=100.0, **TWENTY)
DRO = training("dro", rollout_steps=3, policy_lag=7, margin=-0.02, **TWENTY)
REGIONS = {
    "everywhere": {},
    "in the hole": {"region": "hole"},
    "mean of the hole": {"region": "hole", "region_mean": "hole"},
}
EVERY_SAMPLE_COUNTS: dict[str, Any] = {"dro": {"margin": -10.0}, "hinge": {"beta": 1.0}}
FINAL = DRO.model_copy(update={"policy_state": "final", "steps": 5})
CASES = {
    "sd15_inpaint": [
        *((DPO, region) for region in REGIONS),
        *((DRO, region) for region in ("everywhere", "in the hole")),
    ],
    "flux_fill": [(DPO, "in the hole"), (DRO, "everywhere"), (FINAL, "mean of the hole")],
}


@pytest.mark.parametrize(
    "name, stage, region", [(name, *case) for name, cases in CASES.items() for case in cases]
)
def test_20_steps_equal_a_plain_implementation(
    name: str, stage: Any, region: str, tmp_path: Path
) -> None:
    compare(name, stage.model_copy(update=REGIONS[region]), tmp_path)


def test_products_are_means_over_the_hole() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn((2, 3, 4, 8, 8), generator=generator, dtype=torch.float64)
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    mask[0, :, 2:5, 1:7] = 1
    mask[1, :, :, :] = 1  # and none in the third
    for mean in ("image", "hole"):
        factor = within(mask, mean=mean)
        got = (one * factor * other * factor).flatten(1).mean(1)
        inside = [one[b][:, mask[b, 0] == 1] * other[b][:, mask[b, 0] == 1] for b in range(3)]
        size = [4 * 64] * 3 if mean == "image" else [4 * 18, 4 * 64, 1]
        expected = [float(part.sum()) / n for part, n in zip(inside, size, strict=True)]
        assert got.tolist() == pytest.approx(expected, rel=1e-12)


class Drawn:
    """A denoiser whose predictions are drawn, and kept with their gradients."""

    module, device, dtype = torch.nn.Module(), torch.device("cpu"), torch.float64

    def __init__(self) -> None:
        self.made: list[torch.Tensor] = []

    def predict(self, x: torch.Tensor, *_: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(self.made))
        made = x + 0.01 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        self.made.append(made.requires_grad_(torch.is_grad_enabled()))
        return made


@pytest.mark.parametrize("name", OFFLINE)
def test_no_objective_sees_anything_around_the_hole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "activate", lambda *_, **__: None)
    stage = training(name, **EVERY_SAMPLE_COUNTS.get(name, {}))
    network, data = Drawn(), pairs(family="sd15_inpaint")
    x, target = torch.randn((2, 2, 4, 8, 8), dtype=torch.float64)
    sides = (Side(x, target), Side(x, target + 1))[: len(stage.sides)]
    prompts = data.prompts([1, 5], [False, True], [False, True])
    assert prompts.surroundings_BKHW is not None
    hole = prompts.surroundings_BKHW[:, :1]
    samples = Samples(sides, torch.tensor([10, 900]), prompts)
    found = measure(
        network,  # type: ignore[arg-type]
        samples,
        against=stage.against,
        factor_B1HW=within(hole, mean="image"),
    )
    loss_B, _ = stage.loss(found, facts_of(stage, 2))
    loss_B.sum().backward()
    gradient = network.made[-1].grad
    assert gradient is not None
    around = (hole == 0).repeat(len(sides), 4, 1, 1)
    assert 0.5 < around.double().mean() < 0.95
    assert (gradient[around] == 0).all() and (gradient[~around] != 0).any()


def test_earlier_trainings_keep_their_fingerprint() -> None:
    decide = results_of({"t": training()})
    assert not {"t.region", "t.region_mean"} & set(decide)
    decide = results_of({"t": training(region="hole", region_mean="hole")})
    assert {"t.region", "t.region_mean"} <= set(decide)


def test_the_metrics_are_those_of_the_hole(tmp_path: Path) -> None:
    stage = training(steps=1, batch=4, micro_batch=4)
    means = {}
    for name, region in REGIONS.items():
        stage = training(steps=1, batch=4, micro_batch=4, **region)
        [means[name]] = run(stage, str(tmp_path / name), family="sd15_inpaint")
    whole, part, own = (means[name]["ref_chosen"] for name in REGIONS)
    assert 0 < part < whole and part < own


def test_a_training_ends_at_its_last_step_where_the_release_goes_on(tmp_path: Path) -> None:
    taken: list[int] = []
    hook = register_optimizer_step_pre_hook(lambda *_: taken.append(1))
    try:
        run(training(steps=3, batch=1), str(tmp_path), family="sd15_inpaint")
        run(training(steps=3, batch=1), str(tmp_path), family="sd15_inpaint")  # it is done already
    finally:
        hook.remove()
    assert len(taken) == 3


# ------------------------------------------------------------------ what is refused


def test_a_hole_of_a_base_that_does_not_inpaint_is_refused_before_any_work(tmp_path: Path) -> None:
    config = load(RunConfig, "tiny", ["train.stage1.region=hole", f"storage={tmp_path}"])
    with pytest.raises(InputError, match=r"^train\.stage1\.region=hole: .*sd15 does not inpaint;"):
        Run(config).alignment.check_training("stage1")
    Run(config).alignment.check_training("stage2")
    with pytest.raises(InputError, match="does not inpaint; set region=image"):
        run(training(region="hole", steps=1), str(tmp_path))


def test_a_mean_over_a_hole_needs_a_hole() -> None:
    with pytest.raises(InputError, match=r"train\.stage1.*region_mean=hole: .*set region=hole"):
        load(RunConfig, "tiny", ["train.stage1.region_mean=hole"])


def test_families_that_inpaint_know_their_hole() -> None:
    for name in FAMILIES:
        assert (family(name).hole is not None) == (name in INPAINTING)
    assert BASES.keys() >= INPAINTING

"""Losses on steps of paths against formulas of torch's Normal: values, gradients, GRPO-Guard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain_coupled import COUPLED, Said, Stepped, total
from torch.distributions import Normal
from training import training

from raypref.align.objectives.coupled import CoupledConfig
from raypref.align.residuals import Residuals
from raypref.models.stochastic import flow_sde

B, SHAPE = 4, (2, 3, 3)
SIGMAS = torch.tensor([0.9, 0.7, 0.4, 0.2], dtype=torch.float64)  # B samples at levels of their own
ADVANTAGES = torch.tensor([1.3, -0.7, 0.4, -1.1], dtype=torch.float64)
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("ddpo", {"kl": 0.4, "kl_of": "prediction"}),
    ("dpok", {"kl_of": "step", "per_dimension": False, "clip_range": 0.3}),
    ("d3po", {"per_dimension": False, "eps": 0.5, "beta": 2.0}),
    ("flow_grpo", {"ratio": "guard", "clip_range": 0.01, "per_dimension": False}),
]
CASES = [(n.partition("-")[0], {**e.settings, "batch": 48}) for n, e in COUPLED.items()] + OTHERS
# Half a step past a clip has another slope than the clip: ranges nothing reaches, or all of it.
SMOOTH = {"clip_range": 50.0}


def stage_of(name: str, settings: dict[str, Any]) -> CoupledConfig:
    stage = training(name, **{"rollout_steps": 5, "group": 4, "timesteps": 1, **settings})
    assert isinstance(stage, CoupledConfig)
    return stage


def draw(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((B, *SHAPE), generator=generator, dtype=torch.float64)


class Case:
    """B steps of two sides: what policy and reference predict, and where the steps led."""

    def __init__(self, far: float) -> None:
        grid = torch.stack([SIGMAS, SIGMAS - 0.1])
        self.solver = flow_sde(grid, eta=0.7)
        self.x, self.old = [draw(1), draw(2)], [draw(3), draw(4)]
        self.ref = [old + far * draw(5 + k) for k, old in enumerate(self.old)]
        self.new = torch.stack([old + far * draw(7 + k) for k, old in enumerate(self.old)])
        self.steps = [self.solver.step(0, self.x[k], self.old[k], draw(9 + k)) for k in range(2)]

    def loss(self, stage: CoupledConfig, new: torch.Tensor) -> torch.Tensor:
        sides = []
        for k in range(len(stage.sides)):
            target = self.steps[k].target_BCHW
            ref = self.ref[k] - target if stage.against else None
            old = self.old[k] - target if stage.reads_policy else None
            sides.append(Residuals(new[k] - target, ref, old))
        facts = {"advantage": ADVANTAGES, "decided": torch.ones(B, dtype=torch.float64)}
        facts |= {"kappa": self.steps[0].kappa_B, "std": self.steps[0].std_B}
        loss_B, metrics = stage.loss(sides, facts)
        assert loss_B.shape == (B,)
        assert all(values.shape == (B,) for values in metrics.values())
        return loss_B

    def plain(self, stage: CoupledConfig, new: torch.Tensor) -> list[torch.Tensor]:
        zero = torch.zeros_like(self.x[0])
        means = [self.solver.step(0, zero, zero + by, zero).x_BCHW for by in (0.0, 1.0)]
        weight_B = (means[1] - means[0]).abs().flatten(1).mean(1)

        def said(k: int, b: int, prediction: torch.Tensor) -> Said:
            mean = self.solver.step(0, self.x[k], prediction, zero).x_BCHW[b]
            step = Normal(mean, torch.full_like(mean, self.steps[k].std_B[b].item()))
            likelihood = total(stage, step.log_prob(self.steps[k].x_BCHW[b]))
            return Said(prediction[b], step, likelihood)

        found = []
        for b in range(B):
            sides = [
                Stepped(
                    *(said(k, b, each) for each in (new[k], self.old[k], self.ref[k])),
                    weight_B[b].item(),
                    ADVANTAGES[b].item(),
                )
                for k in range(len(stage.sides))
            ]
            formula = next(e.formula for n, e in COUPLED.items() if n == stage.objective)
            found.append(formula(stage, *sides))
        return found


@pytest.mark.parametrize("far", [1e-3, 0.3])
@pytest.mark.parametrize("name, settings", CASES)
def test_value_and_gradient_are_those_of_the_formula(
    name: str, settings: dict[str, Any], far: float
) -> None:
    stage, case = stage_of(name, settings), Case(far)
    new = case.new.clone().requires_grad_()
    expected = case.plain(stage, new)
    (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), new, allow_unused=True)
    got = case.loss(stage, new)
    (gradient,) = torch.autograd.grad(got.sum(), new)
    assert got.tolist() == pytest.approx([value.item() for value in expected], rel=1e-8)
    assert (gradient - wanted).abs().max() < 1e-8 * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("name, settings", CASES)
def test_its_gradient_is_that_of_finite_differences(name: str, settings: dict[str, Any]) -> None:
    stage, case = stage_of(name, settings), Case(0.1)
    update = SMOOTH if hasattr(stage, "clip_range") else {"eps": 0.99}
    stage = stage.model_copy(update=update)
    new = case.new.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: case.loss(stage, values), (new,))


def test_the_score_function_has_the_gradient_of_the_log_likelihood() -> None:
    stage, case = stage_of("ddpo", {"estimator": "score_function"}), Case(0.2)
    new = case.new.clone().requires_grad_()
    (ours,) = torch.autograd.grad(case.loss(stage, new).sum(), new)
    likelihood = 0
    for b, one in enumerate(case.steps[0].std_B.tolist()):
        mean = case.solver.step(0, case.x[0], new[0], 0 * case.x[0]).x_BCHW[b]
        log_prob = Normal(mean, one).log_prob(case.steps[0].x_BCHW[b]).mean()
        likelihood = likelihood - ADVANTAGES[b] * log_prob
    (wanted,) = torch.autograd.grad(likelihood, new)
    assert (ours - wanted).abs().max() < 1e-12


def test_guards_loss_is_the_releases_but_for_a_factor() -> None:
    """It divides by the change of level; here by |B|, on this SDE 1 + eta^2 / 2 times that."""
    stage, case = (
        stage_of("flow_grpo", {"ratio": "guard", "kl": 0.0, "clip_range": 0.05}),
        Case(0.3),
    )
    ours = case.loss(stage, case.new)
    zero = 0 * case.x[0]
    for b in range(B):
        means = [
            case.solver.step(0, case.x[0], each, zero).x_BCHW[b]
            for each in (case.new[0], case.old[0])
        ]
        std, change = case.steps[0].std_B[b], 0.1
        following = case.steps[0].x_BCHW[b]
        new, old = (Normal(mean, std).log_prob(following).mean() for mean in means)
        bias = (means[0] - means[1]).square().mean() / (2 * std**2)
        ratio = ((new - old + bias) * std).exp()
        free, held = -ADVANTAGES[b] * ratio, -ADVANTAGES[b] * ratio.clamp(0.95, 1.05)
        released = torch.maximum(free, held) / change
        assert ours[b].item() * (1 + 0.7**2 / 2) == pytest.approx(released.item(), rel=1e-9)


def test_the_clip_holds_what_moved_with_the_advantage() -> None:
    """DDPO keeps the gradient that leads back, DPOK's release none."""
    case = Case(0.3)
    new = case.new.clone().requires_grad_()
    counts = {}
    for name in ("ddpo", "dpok"):
        stage = stage_of(name, {"clip_range": 1e-6, "kl": 0.0})
        (gradient,) = torch.autograd.grad(case.loss(stage, new).sum(), new)
        counts[name] = int((gradient[0].flatten(1).abs().amax(1) > 0).sum())
    assert counts["dpok"] == 0 < counts["ddpo"] < B

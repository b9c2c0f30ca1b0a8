"""The arena's objectives: formulas by hand, gradients, what they are equal to in their limits."""

import math
from pathlib import Path

import pytest
import torch
from plain_comparison import compare
from test_objectives import BETTER, WORSE, made_of, networks, objective, one, sides, sigmoid
from training import training

from raypref.align.residuals import Residuals

BETA = 100.0  # BETTER has the logit 1.5, WORSE has -0.5
VARIANTS = ("margin", "weight", "regression")


def loss_of(
    name: str, residuals: list[Residuals], *gaps: float, **settings: object
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    training = objective(name, **settings)  # type: ignore[arg-type]
    facts = {"gap": torch.tensor(gaps, dtype=torch.float64)} if training.facts else {}
    return training.loss(residuals, facts)


# Variant, gamma, gap: what BETTER and WORSE cost.
BY_HAND = {
    ("margin", 1.0, 0.4): (-math.log(sigmoid(1.1)), -math.log(sigmoid(-0.9))),
    ("margin", 2.0, 2.27): (-math.log(sigmoid(-3.04)), -math.log(sigmoid(-5.04))),
    ("weight", 1.0, 0.4): (-0.4 * math.log(sigmoid(1.5)), -0.4 * math.log(sigmoid(-0.5))),
    ("weight", 0.5, 2.25): (-1.5 * math.log(sigmoid(1.5)), -1.5 * math.log(sigmoid(-0.5))),
    ("regression", 0.5, 2.0): (0.25, 2.25),
    ("regression", 2.0, 0.25): (1.0, 1.0),
}


@pytest.mark.parametrize("variant, gamma, gap", BY_HAND)
def test_a_loss_equals_its_formula(variant: str, gamma: float, gap: float) -> None:
    settings = {"variant": variant, "gamma": gamma, "beta": BETA}
    for case, expected in zip((BETTER, WORSE), BY_HAND[variant, gamma, gap], strict=True):
        loss, metrics = loss_of("arena", one(*case), gap, **settings)
        logit = 1.5 if case == BETTER else -0.5
        assert loss.item() == pytest.approx(expected, rel=1e-11, abs=1e-12)
        assert metrics["logit"].item() == pytest.approx(logit, rel=1e-12)
        assert metrics["margin_exceeded"].item() == float(logit > gamma * gap)


def test_a_fixed_margin_equals_its_formula() -> None:
    for case, logit in ((BETTER, 1.5), (WORSE, -0.5)):
        loss, metrics = loss_of("fixed_margin", one(*case), beta=BETA, gamma=0.75)
        assert loss.item() == pytest.approx(-math.log(sigmoid(logit - 0.75)), rel=1e-12)
        assert metrics["margin_exceeded"].item() == float(logit > 0.75)


@pytest.mark.parametrize(
    "name, settings",
    [*(("arena", {"variant": variant}) for variant in VARIANTS), ("fixed_margin", {})],
)
def test_its_gradient_is_that_of_finite_differences(name: str, settings: dict[str, str]) -> None:
    generator = torch.Generator().manual_seed(5)
    draws = 0.1 + 0.05 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    gaps = (0.36, 0.68, 0.82, 1.1, 2.05, 2.27)
    learner, reference = draws[:2].clone().requires_grad_(), draws[2:]
    assert torch.autograd.gradcheck(
        lambda x: loss_of(
            name, made_of(torch.cat([x, reference])), *gaps, beta=BETA, gamma=0.7, **settings
        )[0],
        learner,
    )


def both(name: str, *gaps: float, **settings: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss per sample and the gradient of its sum, of five samples of whole tensors."""
    fixed, learner = networks(7)
    loss, _ = loss_of(name, sides(fixed, learner), *gaps, **settings)
    (gradient,) = torch.autograd.grad(loss.sum(), learner)
    return loss.detach(), gradient


@pytest.mark.parametrize(
    "name, settings",
    [("arena", {"variant": "margin"}), ("arena", {"variant": "weight"}), ("fixed_margin", {})],
)
def test_without_gamma_it_is_dpo_bit_for_bit(name: str, settings: dict[str, str]) -> None:
    gaps = (0.36, 0.68, 1.0, 2.05, 2.27)
    for ours, dpo in zip(both(name, *gaps, gamma=0.0, **settings), both("dpo"), strict=True):
        assert torch.equal(ours, dpo)


def test_one_gap_for_all_pairs_is_a_fixed_margin_or_ipo() -> None:
    same = (1.0,) * 5
    fixed = both("fixed_margin", gamma=0.8, beta=20.0)
    for ours, theirs in zip(both("arena", *same, gamma=0.8, beta=20.0), fixed, strict=True):
        assert torch.equal(ours, theirs)
    pulled = both("arena", *same, gamma=0.5, beta=20.0, variant="regression")
    for ours, theirs in zip(pulled, both("ipo", beta=20.0), strict=True):
        assert torch.equal(ours, theirs)


def test_where_training_starts_the_gap_decides_how_much_a_pair_counts() -> None:
    """At logit 0 the gradient is that of -logit times sigmoid(gamma gap), gap/2 or 2 gamma gap."""
    gaps = torch.tensor([0.2, 0.5, 1.0, 1.5, 3.0], dtype=torch.float64)
    fixed, _ = networks(4)
    learner = torch.stack([fixed["ref_w"], fixed["ref_l"]]).requires_grad_()
    # The gradient of -logit = beta/2 (chosen gap - rejected gap), one sample at a time.
    slope = torch.stack([fixed["ref_w"] - fixed["eps_w"], fixed["eps_l"] - fixed["ref_l"]]) * (
        BETA / fixed["eps_w"][0].numel()
    )
    gamma = 1.3
    weights = {
        "margin": 1 / (1 + torch.exp(-gamma * gaps)),
        "weight": gaps**gamma / 2,
        "regression": 2 * gamma * gaps,
    }
    for variant, weight in weights.items():
        loss, metrics = loss_of(
            "arena", sides(fixed, learner), *gaps.tolist(), variant=variant, gamma=gamma, beta=BETA
        )
        (got,) = torch.autograd.grad(loss.sum(), learner)
        torch.testing.assert_close(got, slope * weight[:, None, None, None], rtol=1e-10, atol=1e-13)
        assert metrics["logit"].tolist() == [0.0] * 5
        assert metrics["margin_exceeded"].tolist() == [0.0] * 5


@pytest.mark.parametrize("variant, family", [("weight", "sd35m"), ("regression", "sd15")])
def test_20_steps_of_a_variant_equal_a_plain_implementation(
    variant: str, family: str, tmp_path: Path
) -> None:
    """The default variant is with the other objectives, in `test_trained_objectives.py`."""
    settings = {"variant": variant, "gamma": 1.5, "beta": 100.0, "steps": 20, "batch": 1}
    compare(family, training("arena", lr=1e-3, **settings), tmp_path)

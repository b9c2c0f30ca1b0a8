"""Objectives against the papers' equations, written out here by hand in numpy and autograd."""

import math

import pytest
import torch

from raypref.align.config import TrainingConfig
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.residuals import Residuals, _residual

B, C, H, W = 5, 4, 8, 8


def networks(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random targets and reference predictions, and the learner's predictions that take grads."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> torch.Tensor:
        return torch.randn(B, C, H, W, generator=generator, dtype=torch.float64)

    fixed = {name: draw() for name in ("eps_w", "eps_l", "ref_w", "ref_l")}
    learner = torch.stack([draw(), draw()]).requires_grad_()
    return fixed, learner


def by_hand(fixed: dict[str, torch.Tensor], learner: torch.Tensor) -> list[torch.Tensor]:
    """Per sample: (phi_w - ref_w) - (phi_l - ref_l) with plain loops over the equation's norms."""
    gaps = []
    for b in range(B):
        phi_w = ((fixed["eps_w"][b] - learner[0, b]) ** 2).sum() / (C * H * W)
        phi_l = ((fixed["eps_l"][b] - learner[1, b]) ** 2).sum() / (C * H * W)
        ref_w = ((fixed["eps_w"][b] - fixed["ref_w"][b]) ** 2).sum() / (C * H * W)
        ref_l = ((fixed["eps_l"][b] - fixed["ref_l"][b]) ** 2).sum() / (C * H * W)
        gaps.append((phi_w - ref_w) - (phi_l - ref_l))
    return gaps


def sides(fixed: dict[str, torch.Tensor], learner: torch.Tensor) -> list[Residuals]:
    return [
        Residuals(
            learner[number] - fixed[f"eps_{side}"], fixed[f"ref_{side}"] - fixed[f"eps_{side}"]
        )
        for number, side in enumerate(("w", "l"))
    ]


def objective(name: str, **settings: float) -> TrainingConfig:
    return OBJECTIVES[name](objective=name, **settings)


def loss_of(
    name: str, residuals: list[Residuals], **settings: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    made = objective(name, **settings)
    facts = {name: torch.ones_like(residuals[0].error) for name in made.facts}
    return made.loss(residuals[: len(made.sides)], facts)


@pytest.mark.parametrize("margin", [0.0, -0.001, -0.05])
def test_dro_equals_equation_1(margin: float) -> None:
    fixed, learner = networks(1)
    expected = sum(torch.maximum(torch.tensor(margin), gap) for gap in by_hand(fixed, learner)) / B
    (wanted,) = torch.autograd.grad(expected, learner)

    loss, metrics = loss_of("dro", sides(fixed, learner), margin=margin)
    (got,) = torch.autograd.grad(loss.mean(), learner)

    assert loss.mean().item() == pytest.approx(expected.item(), abs=1e-9)
    assert (got - wanted).abs().max() < 1e-9
    active = [float(gap > margin) for gap in by_hand(fixed, learner)]
    assert metrics["hinge_active"].tolist() == active
    assert 0 < sum(active) < B, "the example must have open and closed hinges"


def test_dro_differs_from_the_released_form_by_a_constant() -> None:
    fixed, learner = networks(2)
    margin = -0.001
    released = sum(torch.clamp(gap - margin, min=0) for gap in by_hand(fixed, learner)) / B
    (wanted,) = torch.autograd.grad(released, learner)
    loss, _ = loss_of("dro", sides(fixed, learner), margin=margin)
    (got,) = torch.autograd.grad(loss.mean(), learner)
    assert loss.mean().item() - released.item() == pytest.approx(margin, abs=1e-9)
    assert (got - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("beta", [1.0, 100.0, 2000.0])
def test_dpo_equals_equation_2(beta: float) -> None:
    fixed, learner = networks(3)
    # log1p(exp(.)) of the negated argument is -log sigmoid, written without torch's own function.
    expected = sum(torch.log1p(torch.exp(0.5 * beta * gap)) for gap in by_hand(fixed, learner)) / B
    (wanted,) = torch.autograd.grad(expected, learner)

    loss, metrics = loss_of("dpo", sides(fixed, learner), beta=beta)
    (got,) = torch.autograd.grad(loss.mean(), learner)

    if math.isfinite(expected.item()):
        assert loss.mean().item() == pytest.approx(expected.item(), rel=1e-9)
        assert (got - wanted).abs().max() < 1e-6
    assert metrics["implicit_accuracy"].tolist() == [
        float(gap < 0) for gap in by_hand(fixed, learner)
    ]


def test_at_the_reference_dpo_is_log_2_and_dro_is_0() -> None:
    fixed, _ = networks(4)
    same = sides(fixed, torch.stack([fixed["ref_w"], fixed["ref_l"]]))
    loss, _ = loss_of("dpo", same, beta=2000)
    assert loss.tolist() == pytest.approx([math.log(2)] * B, abs=1e-12)
    loss, metrics = loss_of("dro", same, margin=-0.001)
    assert loss.tolist() == [0.0] * B
    assert metrics["hinge_active"].tolist() == [1.0] * B


def test_residuals_of_half_precision_are_computed_in_float32() -> None:
    prediction = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    residual = _residual(prediction, torch.zeros_like(prediction))
    error = Residuals(residual, residual).error
    assert error.dtype == torch.float32
    assert error.item() == 90000.0  # beyond float16


def test_inner_products_are_those_of_the_tensors() -> None:
    fixed, learner = networks(8)
    side = sides(fixed, learner)[0]
    theta, ref, y = learner[0], fixed["ref_w"], fixed["eps_w"]
    for got, products in (
        (side.error, (theta - y) * (theta - y)),
        (side.reference_error, (ref - y) * (ref - y)),
        (side.gap, (theta - y) ** 2 - (ref - y) ** 2),
        (side.cross, (theta - y) * (ref - y)),
    ):
        wanted = torch.stack([sample.sum() / (C * H * W) for sample in products])
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)


def test_a_small_gap_between_large_errors_survives_float32() -> None:
    """The difference of two means of about 100 would keep five digits of it, here all but one."""
    generator = torch.Generator().manual_seed(9)
    reference = 10 * torch.randn(2, C, 32, 32, generator=generator)
    step = 1e-5 * torch.randn(2, C, 32, 32, generator=generator)
    learner = reference + step
    exact = Residuals(learner.double(), reference.double())
    wanted = exact.error - exact.reference_error
    side = Residuals(learner, reference)
    off = ((side.gap - wanted) / wanted).abs().max().item()
    naive = ((side.error - side.reference_error - wanted) / wanted).abs().max().item()
    assert off < 1e-3 < naive


# ------------------------------------------------------------------ the others, by hand


def made_of(errors: torch.Tensor) -> list[Residuals]:
    """Sides with these errors, [4, B]: chosen, rejected, then those of the reference."""
    roots = errors.sqrt()[:, :, None, None, None]
    return [Residuals(roots[0], roots[2]), Residuals(roots[1], roots[3])]


def one(chosen: float, rejected: float, ref_chosen: float, ref_rejected: float) -> list[Residuals]:
    values = (chosen, rejected, ref_chosen, ref_rejected)
    return made_of(torch.tensor(values, dtype=torch.float64)[:, None])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# The chosen side got better by 0.02, the rejected worse by 0.01: with beta 100 the logit is
# -0.5 * 100 * (-0.02 - 0.01) = 1.5, the rewards 1.0 and -0.5.
BETTER = (0.10, 0.31, 0.12, 0.30)
# Both got worse, the chosen more: -0.5 * 100 * (0.03 - 0.02) = -0.5, the rewards -1.5 and -1.0.
WORSE = (0.15, 0.32, 0.12, 0.30)
LOSSES: dict[str, dict[str, float]] = {
    "ipo": {"beta": 100.0},
    "hinge": {"beta": 100.0},
    "kto": {"beta": 100.0},
    "dpo_sft": {"beta": 100.0, "sft_weight": 0.2},
    "sft": {},
}
HAND = {
    "ipo": (100.0**2 * (1.5 / 100 - 1 / 200) ** 2, 100.0**2 * (-0.5 / 100 - 1 / 200) ** 2),
    "hinge": (0.0, 1.5),
    "kto": (
        (1 - sigmoid(1.0)) + (1 - sigmoid(0.5)),
        (1 - sigmoid(-1.5)) + (1 - sigmoid(1.0)),
    ),
    "dpo_sft": (
        -math.log(sigmoid(1.5)) + 0.2 * 50 * 0.10,
        -math.log(sigmoid(-0.5)) + 0.2 * 50 * 0.15,
    ),
    "sft": (0.10, 0.15),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_equals_its_formula(name: str) -> None:
    for case, expected in zip((BETTER, WORSE), HAND[name], strict=True):
        loss, _ = loss_of(name, one(*case), **LOSSES[name])
        assert loss.tolist() == pytest.approx([expected], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    draws = 0.1 + 0.05 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    learner, reference = draws[:2].clone().requires_grad_(), draws[2:]
    assert torch.autograd.gradcheck(
        lambda x: loss_of(name, made_of(torch.cat([x, reference])), **LOSSES[name])[0], learner
    )


def test_ipo_pulls_the_logit_to_a_half_and_no_further() -> None:
    loss, _ = loss_of("ipo", one(0.10, 0.30, 0.11, 0.30), beta=100.0)
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_kto_treats_the_sides_apart() -> None:
    """Moving both by the same amount leaves DPO's loss and changes KTO's."""
    here, there = one(0.1, 0.3, 0.1, 0.3), one(0.15, 0.35, 0.1, 0.3)
    still = [loss_of("dpo", each, beta=100.0)[0].item() for each in (here, there)]
    assert still[0] == pytest.approx(still[1], abs=1e-12)
    loss = loss_of("kto", there, beta=100.0)[0]
    assert loss.tolist() == pytest.approx([sigmoid(2.5) + sigmoid(-2.5)])
    worse = loss_of("kto", one(0.2, 0.3, 0.1, 0.3), beta=100.0)[0].item()
    assert worse == pytest.approx(sigmoid(5.0) + 0.5)


def test_without_weight_dpo_sft_is_dpo() -> None:
    made = sides(*networks(7))
    whole, _ = loss_of("dpo_sft", made, beta=2000.0, sft_weight=0.0)
    assert torch.equal(whole, loss_of("dpo", made, beta=2000.0)[0])

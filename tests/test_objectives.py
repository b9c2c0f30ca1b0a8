"""Objectives against the papers' equations, written out here by hand in numpy and autograd."""

import math

import pytest
import torch

from raypref.align.objectives import Errors, denoising_error, dpo_loss, dro_loss

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


def errors(fixed: dict[str, torch.Tensor], learner: torch.Tensor) -> Errors:
    return Errors(
        winner=denoising_error(learner[0], fixed["eps_w"]),
        loser=denoising_error(learner[1], fixed["eps_l"]),
        ref_winner=denoising_error(fixed["ref_w"], fixed["eps_w"]),
        ref_loser=denoising_error(fixed["ref_l"], fixed["eps_l"]),
    )


@pytest.mark.parametrize("margin", [0.0, -0.001, -0.05])
def test_dro_equals_equation_1(margin: float) -> None:
    fixed, learner = networks(1)
    expected = sum(torch.maximum(torch.tensor(margin), gap) for gap in by_hand(fixed, learner)) / B
    (wanted,) = torch.autograd.grad(expected, learner)

    loss, metrics = dro_loss(errors(fixed, learner), margin=margin)
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
    loss, _ = dro_loss(errors(fixed, learner), margin=margin)
    (got,) = torch.autograd.grad(loss.mean(), learner)
    assert loss.mean().item() - released.item() == pytest.approx(margin, abs=1e-9)
    assert (got - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("beta", [1.0, 100.0, 2000.0])
def test_dpo_equals_equation_2(beta: float) -> None:
    fixed, learner = networks(3)
    # log1p(exp(.)) of the negated argument is -log sigmoid, written without torch's own function.
    expected = sum(torch.log1p(torch.exp(0.5 * beta * gap)) for gap in by_hand(fixed, learner)) / B
    (wanted,) = torch.autograd.grad(expected, learner)

    loss, metrics = dpo_loss(errors(fixed, learner), beta=beta)
    (got,) = torch.autograd.grad(loss.mean(), learner)

    if math.isfinite(expected.item()):
        assert loss.mean().item() == pytest.approx(expected.item(), rel=1e-9)
        assert (got - wanted).abs().max() < 1e-6
    assert metrics["implicit_accuracy"].tolist() == [
        float(gap < 0) for gap in by_hand(fixed, learner)
    ]


def test_at_the_reference_dpo_is_log_2_and_dro_is_0() -> None:
    fixed, _ = networks(4)
    same = errors(fixed, torch.stack([fixed["ref_w"], fixed["ref_l"]]))
    assert dpo_loss(same, beta=2000)[0].tolist() == pytest.approx([math.log(2)] * B, abs=1e-12)
    loss, metrics = dro_loss(same, margin=-0.001)
    assert loss.tolist() == [0.0] * B
    assert metrics["hinge_active"].tolist() == [1.0] * B


def test_errors_of_half_precision_are_computed_in_float32() -> None:
    prediction = torch.full((1, 4, 8, 8), 300.0, dtype=torch.float16)
    error = denoising_error(prediction, torch.zeros_like(prediction))
    assert error.dtype == torch.float32
    assert error.item() == 90000.0  # beyond float16

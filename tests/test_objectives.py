"""Objectives against the papers' equations, written out here by hand in numpy and autograd."""

import math

import pytest
import torch

from raypref.align.objectives import (
    Errors,
    denoising_error,
    dpo_loss,
    dpo_sft_loss,
    dro_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    sft_loss,
)

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


# ------------------------------------------------------------------ the others, by hand


def one(winner: float, loser: float, ref_winner: float, ref_loser: float) -> Errors:
    values = (winner, loser, ref_winner, ref_loser)
    return Errors(*(torch.tensor([v], dtype=torch.float64) for v in values))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# The winner got better by 0.02, the loser worse by 0.01: with beta 100 the logit is
# -0.5 * 100 * (-0.02 - 0.01) = 1.5, the rewards 1.0 and -0.5.
BETTER = (0.10, 0.31, 0.12, 0.30)
# Both got worse, the winner more: -0.5 * 100 * (0.03 - 0.02) = -0.5, the rewards -1.5 and -1.0.
WORSE = (0.15, 0.32, 0.12, 0.30)
LOSSES = {
    "ipo": lambda e: ipo_loss(e, beta=100.0),
    "hinge": lambda e: hinge_loss(e, beta=100.0),
    "kto": lambda e: kto_loss(e, beta=100.0),
    "dpo_sft": lambda e: dpo_sft_loss(e, beta=100.0, weight=0.2),
    "sft": sft_loss,
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
        loss, _ = LOSSES[name](one(*case))
        assert loss.tolist() == pytest.approx([expected], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_its_gradient_is_that_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    draws = 0.1 + 0.05 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    learner, reference = draws[:2].clone().requires_grad_(), draws[2:]
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](Errors(x[0], x[1], reference[0], reference[1]))[0], learner
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_samples_loss_does_not_depend_on_what_is_beside_it(name: str) -> None:
    generator = torch.Generator().manual_seed(6)
    many = Errors(*torch.rand(4, 7, generator=generator, dtype=torch.float64))
    together, _ = LOSSES[name](many)
    alone = [LOSSES[name](Errors(*(column[i : i + 1] for column in many)))[0] for i in range(7)]
    assert torch.equal(together, torch.cat(alone))


def test_ipo_pulls_the_logit_to_a_half_and_no_further() -> None:
    assert ipo_loss(one(0.10, 0.30, 0.11, 0.30), beta=100.0)[0].item() == pytest.approx(
        0, abs=1e-12
    )


def test_kto_treats_winner_and_loser_apart() -> None:
    """Moving both by the same amount leaves DPO's loss and changes KTO's."""
    here, there = one(0.1, 0.3, 0.1, 0.3), one(0.15, 0.35, 0.1, 0.3)
    assert dpo_loss(here, beta=100.0)[0].item() == pytest.approx(
        dpo_loss(there, beta=100.0)[0].item(), abs=1e-12
    )
    loss = kto_loss(Errors(*(v.expand(2) for v in there)), beta=100.0)[0]
    assert loss.tolist() == pytest.approx([sigmoid(2.5) + sigmoid(-2.5)] * 2)
    worse = kto_loss(one(0.2, 0.3, 0.1, 0.3), beta=100.0)[0].item()
    assert worse == pytest.approx(sigmoid(5.0) + 0.5)


def test_without_weight_dpo_sft_is_dpo() -> None:
    fixed, learner = networks(7)
    made = errors(fixed, learner)
    assert torch.equal(
        dpo_sft_loss(made, beta=2000.0, weight=0.0)[0], dpo_loss(made, beta=2000.0)[0]
    )

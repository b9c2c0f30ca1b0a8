"""Every objective on pairs against its formula on plain tensors, and which are each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from plain_objectives import ENTRIES, Sample, error
from training import denoiser, facts_of, pairs, training

from raypref.align.config import TrainingConfig
from raypref.align.residuals import Draw, Residuals

B, SHAPE = 6, (4, 8, 8)
# Part of the loss takes no gradient by design: finite differences see another slope.
HELD = {"linear_dpo", "sdpo"}
CASES = [
    pytest.param(name.partition("-")[0], settings, id=f"{name}-{number}")
    for name, entry in ENTRIES.items()
    for number, settings in enumerate((entry.settings, *entry.also))
    if name not in ("rwr", "raft")  # not on pairs: test_unpaired_objectives.py
]


def drawn(seed: int, *, far: float = 0.1) -> torch.Tensor:
    """Learner, reference and target of both sides, [2, 3, B, C, H, W].

    The rejected side misses its target by more: in the chosen side's direction, or against it.
    """
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn((2, 1, B, *SHAPE), generator=generator, dtype=torch.float64)
    step = far * torch.randn((2, 1, B, *SHAPE), generator=generator, dtype=torch.float64)
    shared = torch.randn((1, 1, B, *SHAPE), generator=generator, dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0] * (B // 2))[None, None, :, None, None, None]
    target = reference + torch.cat([shared, 2 * shared * sign])
    return torch.cat([reference + step, reference, target], dim=1)


def ours(
    stage: TrainingConfig, phi: torch.Tensor, tensors: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and metrics of learner's predictions phi, [2, B, C, H, W]."""
    sides = [
        Residuals(phi[i] - tensors[i, 2], tensors[i, 1] - tensors[i, 2] if stage.against else None)
        for i in range(len(stage.sides))
    ]
    return stage.loss(sides, facts_of(stage, B))


def loss(name: str, tensors: torch.Tensor, **settings: Any) -> torch.Tensor:
    return ours(training(name, **settings), tensors[:, 0], tensors)[0]


@pytest.mark.parametrize("name, settings", CASES)
def test_value_and_gradient_are_those_of_the_formula(name: str, settings: dict[str, Any]) -> None:
    stage, tensors = training(name, **settings), drawn(1)
    phi = tensors[:, 0].clone().requires_grad_()
    facts = {key: values.tolist() for key, values in facts_of(stage, B).items()}
    expected = [
        ENTRIES[name].formula(
            stage,
            Sample(
                *((phi[i, b], tensors[i, 1, b], tensors[i, 2, b]) for i in range(2)),
                {key: values[b] for key, values in facts.items()},
            ),
        )
        for b in range(B)
    ]
    (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), phi)
    got, _ = ours(stage, phi, tensors)
    (gradient,) = torch.autograd.grad(got.sum(), phi)
    assert got.tolist() == pytest.approx([value.item() for value in expected], rel=1e-9)
    assert wanted.abs().max() > 1e-9
    assert (gradient - wanted).abs().max() < 1e-9 * max(1.0, wanted.abs().max().item())


@pytest.mark.parametrize("name, settings", [case for case in CASES if case.values[0] not in HELD])
def test_its_gradient_is_that_of_finite_differences(name: str, settings: dict[str, Any]) -> None:
    stage, tensors = training(name, **settings), drawn(2)[..., :1, :2]
    phi = tensors[:, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ours(stage, x, tensors)[0], phi)


# ------------------------------------------------------------------ objectives that are another


@pytest.mark.parametrize(
    "name, settings",
    [
        ("cdpo", {"label_noise": 0.0}),
        ("rdpo", {"label_noise": 0.0}),
        ("fdpo", {"divergence": "reverse_kl"}),
        ("dpo", {"discount": 1.0}),
        ("spin", {}),
    ],
)
def test_it_is_dpo(name: str, settings: dict[str, Any]) -> None:
    tensors = drawn(3)
    assert torch.equal(loss(name, tensors, beta=50.0, **settings), loss("dpo", tensors, beta=50.0))


def test_capo_with_a_half_between_all_scores_is_ipo() -> None:
    stage, tensors = training("capo", beta=50.0), drawn(16)
    sides = [Residuals(*(tensors[i, j] - tensors[i, 2] for j in (0, 1))) for i in range(2)]
    low = torch.linspace(0, 0.5, B, dtype=torch.float64)
    got, metrics = stage.loss(sides, {"score_chosen": low + 0.5, "score_rejected": low})
    torch.testing.assert_close(got, loss("ipo", tensors, beta=50.0))
    assert metrics["score_gap"].tolist() == pytest.approx([0.5] * B)


def test_capo_shares_the_noise_of_a_pair_where_the_release_draws_two() -> None:
    stage, network, data = training("capo", caption_dropout=0.0), denoiser(), pairs()
    draws = [Draw(i, torch.Generator().manual_seed(i)) for i in range(3)]
    chosen, rejected = stage.experience()(network, data, stage, draws).sides
    assert chosen.target_BCHW is not None and rejected.target_BCHW is not None
    assert torch.equal(chosen.target_BCHW, rejected.target_BCHW)  # of SD-1.5 it is the noise
    assert not torch.equal(chosen.x_BCHW, rejected.x_BCHW)


def test_labels_that_all_agree_make_smpo_dpo() -> None:
    stage, tensors = training("smpo", label_from="votes", sharpness=1.0, beta=50.0), drawn(4)
    sides = [Residuals(*(tensors[i, j] - tensors[i, 2] for j in (0, 1))) for i in range(2)]
    for share, factor in ((1.0, 1), (0.0, -1), (0.5, 0)):
        got, _ = stage.loss(sides, {"vote_share": torch.full((B,), share, dtype=torch.float64)})
        logit, _ = training("dpo", beta=50.0).logit(sides)  # type: ignore[attr-defined]
        torch.testing.assert_close(got, torch.log1p(torch.exp(-factor * logit)))


def test_a_small_alpha_is_the_reverse_divergence_and_1_the_forward_one() -> None:
    tensors, common = drawn(5), {"beta": 50.0, "horizon": 5.0}
    small = loss("fdpo", tensors, divergence="alpha", alpha=1e-7, **common)
    torch.testing.assert_close(small, loss("dpo", tensors, beta=50.0), rtol=1e-5, atol=1e-6)
    large = loss("fdpo", tensors, divergence="alpha", alpha=1 - 1e-9, **common)
    forward = loss("fdpo", tensors, divergence="forward_kl", **common)
    torch.testing.assert_close(large, forward)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_near_the_reference_all_divergences_are_one(divergence: str) -> None:
    """f''(1) is 1 for all but Jensen-Shannon, where it is 1/2."""
    tensors = drawn(6, far=1e-6)
    got = loss("fdpo", tensors, divergence=divergence, beta=1e3) - math.log(2)
    dpo = loss("dpo", tensors, beta=1e3) - math.log(2)
    torch.testing.assert_close(got, (0.5 if divergence == "js" else 1) * dpo, rtol=1e-3, atol=1e-9)


def test_a_divergence_does_not_overflow() -> None:
    tensors = drawn(7, far=3.0).float()
    phi = tensors[:, 0].clone().requires_grad_()
    for divergence in ("forward_kl", "js", "alpha"):
        got, _ = ours(training("fdpo", divergence=divergence), phi, tensors)
        (gradient,) = torch.autograd.grad(got.sum(), phi)
        assert got.isfinite().all() and gradient.isfinite().all(), divergence


def test_rdpo_of_noisy_labels_is_dpo_of_the_right_ones_on_average() -> None:
    tensors, q = drawn(8), 0.3
    swapped = tensors.flip(0)
    noisy = (1 - q) * loss("rdpo", tensors, beta=9.0, label_noise=q)
    noisy = noisy + q * loss("rdpo", swapped, beta=9.0, label_noise=q)
    torch.testing.assert_close(noisy, loss("dpo", tensors, beta=9.0))


def test_cdpo_is_least_where_the_learner_is_as_sure_as_the_labels() -> None:
    q, logits = 0.2, torch.linspace(-4, 4, 8001, dtype=torch.float64)
    sides = at_logit(logits)
    got, _ = training("cdpo", beta=2.0, label_noise=q).loss(sides, {})
    assert logits[got.argmin()].item() == pytest.approx(math.log((1 - q) / q), abs=1e-3)


def test_dmpo_is_0_where_the_learner_is_as_sure_as_the_labels_and_flat_far_off() -> None:
    logits = torch.tensor([math.log(0.9 / 0.1), -40.0], dtype=torch.float64)
    learner = at_logit(logits)[0].learner.clone().requires_grad_()
    other = at_logit(logits)
    sides = [Residuals(learner, other[0].reference), other[1]]
    got, _ = training("dmpo", beta=2.0, alpha=0.1).loss(sides, {})
    assert got[0].item() == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(got.sum(), learner)
    assert gradient.abs().amax((1, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-9)


def at_logit(logits: torch.Tensor) -> list[Residuals]:
    """Sides of one pixel whose logit at beta = 2 is this."""
    reference = torch.full((len(logits), 1, 1, 1), 10.0, dtype=torch.float64)
    chosen = (100 - logits).sqrt()[:, None, None, None]
    return [Residuals(chosen, reference), Residuals(reference, reference)]


def test_sdpo_is_dpo_in_value_and_wherever_the_sides_do_not_pull_together() -> None:
    tensors = drawn(9)
    phi = tensors[:, 0].clone().requires_grad_()
    held, metrics = ours(training("sdpo", beta=50.0), phi, tensors)
    plain, _ = ours(training("dpo", beta=50.0), phi, tensors)
    assert torch.equal(held, plain)
    (one,), (other,) = (torch.autograd.grad(each.sum(), phi) for each in (held, plain))
    unlike = torch.arange(1, B, 2)  # pairs whose residuals point apart
    assert (metrics["rejected_share"][unlike] == 1).all()
    torch.testing.assert_close(one[:, unlike], other[:, unlike])
    assert (metrics["rejected_share"][::2] < 1).all()


def test_under_sdpo_the_chosen_error_does_not_rise() -> None:
    """A small step on predictions that both sides share, as weights would: chosen improves."""
    tensors = drawn(10)
    phi = tensors[:, 0].clone().requires_grad_()
    for name, improves in (("sdpo", True), ("dpo", False)):
        got, _ = ours(training(name, beta=50.0), phi, tensors)
        (gradient,) = torch.autograd.grad(got.sum(), phi)
        moved = tensors[0, 0] - 1e-4 * gradient.sum(0)
        rises = [
            error(moved[b], tensors[0, 2, b]) > error(tensors[0, 0, b], tensors[0, 2, b])
            for b in range(B)
        ]
        assert any(rises) != improves, name


def test_dspo_without_weight_is_sft() -> None:
    tensors = drawn(11)
    torch.testing.assert_close(loss("dspo", tensors, beta=1e-12), loss("sft", tensors))


def test_linear_dpo_weighs_all_pairs_by_a_half_at_the_reference_and_within_eta() -> None:
    tensors = drawn(12, far=0.0)
    _, metrics = ours(training("linear_dpo"), tensors[:, 0], tensors)
    assert metrics["pair_weight"].tolist() == [0.5] * B
    _, metrics = ours(training("linear_dpo", eta=0.4), drawn(13)[:, 0], drawn(13))
    assert metrics["pair_weight"].aminmax() == (0.4, 0.6)


def test_mapo_without_preference_is_sft() -> None:
    tensors = drawn(14)
    assert torch.equal(loss("mapo", tensors, beta=0.0), loss("sft", tensors))


def test_the_odds_are_1_at_0_and_0_far_off_with_a_gradient() -> None:
    from raypref.align.objectives.mapo import odds

    x = torch.tensor([0.0, 1e-6, 1e4], requires_grad=True)
    values = odds(x)
    assert values.tolist() == pytest.approx([1, 1 - 5e-7, 0])
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.isfinite().all()


def test_simpo_without_a_margin_is_dpo_whose_reference_makes_no_errors() -> None:
    tensors = drawn(15)
    perfect = tensors.clone()
    perfect[:, 1] = perfect[:, 2]
    got = loss("simpo", tensors, beta=5.0, gamma=0.0)
    torch.testing.assert_close(got, loss("dpo", perfect, beta=5.0))


def test_a_reference_free_training_stops_when_its_error_grows_from_where_it_was() -> None:
    stage = training("mapo", batch=128, max_error_ratio=2.0)
    history = [{"chosen_error": value} for value in (0.1, 0.3, 0.3, 0.3, 0.4, 0.41)]
    assert stage.health(history[:-1], key="train.mine") == ""
    assert "2.02 times that at first" in stage.health(history, key="train.mine")

"""KTO's forms and the weighted regression by hand, and when they stop."""

import math

import pytest
import torch
from training import training

from raypref.align.objectives.kto import KTO
from raypref.align.residuals import Residuals
from raypref.core.config import results_of

UTILITIES = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "loss_averse": lambda x: math.log(1 / (1 + math.exp(-x))),
    "risk_seeking": lambda x: -math.log(1 - 1 / (1 + math.exp(-x))),
}
OLD = {"sample", "utility", "reference_point", "desirable_weight", "undesirable_weight"}


def side(errors: list[float], references: list[float]) -> Residuals:
    """One with these errors."""
    both = torch.tensor([errors, references], dtype=torch.float64).sqrt()[:, :, None, None, None]
    return Residuals(*both)


def kto(**settings: object) -> KTO:
    made = training("kto", beta=100.0, **settings)
    assert isinstance(made, KTO)
    return made


def number(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("point", [0.0, 0.4])
def test_an_image_has_the_utility_of_its_gain(utility: str, point: float) -> None:
    """The gap is -0.03: with beta 100 the reward is 1.5."""
    stage = kto(
        sample="image",
        utility=utility,
        reference_point="average",
        desirable_weight=0.7,
        undesirable_weight=1.2,
        desirable_above=2.0,
    )
    u = UTILITIES[utility]
    for score, wanted in ((3.0, 0.7 * (1 - u(1.5 - point))), (2.0, 1.2 * (1 - u(point - 1.5)))):
        facts = {"score": number(score), "reference_point": number(point)}
        loss, metrics = stage.loss([side([0.1], [0.13])], facts)
        assert loss.item() == pytest.approx(wanted, rel=1e-10)
        assert metrics["desirable"].item() == (score > 2)
        assert metrics["desirable_gap"].item() == pytest.approx(-0.03 * (score > 2))


@pytest.mark.parametrize("utility", UTILITIES)
def test_a_pair_is_the_sum_of_its_images(utility: str) -> None:
    generator = torch.Generator().manual_seed(1)
    better, worse = (side(*torch.rand(2, 6, generator=generator).tolist()) for _ in range(2))
    about = {"utility": utility, "desirable_weight": 0.7, "reference_point": "average"}
    point = {"reference_point": torch.full((6,), 0.3, dtype=torch.float64)}
    whole, _ = kto(**about).loss([better, worse], point)
    alone = kto(sample="image", **about)
    good, _ = alone.loss([better], {"score": torch.ones(6), **point})
    bad, _ = alone.loss([worse], {"score": torch.zeros(6), **point})
    torch.testing.assert_close(whole, good + bad, rtol=1e-12, atol=0)


def test_by_default_kto_is_what_it_was_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(2)
    for dtype in (torch.float32, torch.float64):
        draws = torch.randn(4, 9, 4, 8, 8, generator=generator, dtype=dtype) / 30
        sides = [Residuals(draws[0], draws[1]), Residuals(draws[2], draws[3])]
        loss, metrics = training("kto", beta=2000.0).loss(sides, {})
        chosen, rejected = (-0.5 * 2000.0 * each.gap for each in sides)
        assert torch.equal(loss, torch.sigmoid(-chosen) + torch.sigmoid(rejected))
        assert metrics.keys() == {"diff", "implicit_accuracy"}
    assert not {f"t.{key}" for key in OLD | {"desirable_above"}} & set(
        results_of({"t": training("kto")})
    )


@pytest.mark.parametrize("utility", UTILITIES)
@pytest.mark.parametrize("name", ["kto", "rwr"])
def test_gradients_are_those_of_finite_differences(name: str, utility: str) -> None:
    generator = torch.Generator().manual_seed(3)
    learner, reference = 0.3 * torch.randn(2, 5, 2, 3, 3, generator=generator, dtype=torch.float64)
    settings = {"kto": {"sample": "image", "utility": utility, "beta": 5.0}}
    stage = training(name, **settings.get(name, {"pretraining": 0.4}))
    score = torch.tensor([1.0, 0, 1, 0, 1], dtype=torch.float64)
    facts = {"score": score, "weight": 1 + score}
    assert torch.autograd.gradcheck(
        lambda x: stage.loss([Residuals(x, reference)], facts)[0], learner.requires_grad_()
    )


def test_the_reference_point_is_the_mean_reward_of_256_samples_and_not_below_0() -> None:
    def point(stage: KTO, gaps: list[float]) -> float:
        return stage.carried([{"image_gap": gap} for gap in gaps])["reference_point"]

    stage = kto(sample="image", reference_point="average", batch=100)
    assert point(stage, []) == 0
    # Three steps of 100 samples; the first of these is too old.
    assert point(stage, [9.0, -0.01, -0.02, -0.03]) == pytest.approx(50 * 0.02)
    assert point(stage, [-9.0, 0.01, 0.02, 0.03]) == 0
    both = kto(reference_point="average", batch=256)
    history = [{"chosen_gap": -0.04, "rejected_gap": 0.01}]
    assert both.carried(history)["reference_point"] == pytest.approx(50 * 0.015)
    assert kto().carried(history) == {}


def test_rwr_keeps_to_the_reference_with_its_pretraining_term() -> None:
    generator = torch.Generator().manual_seed(4)
    target, theta, ref = torch.randn(3, 5, 4, 8, 8, generator=generator, dtype=torch.float64)
    weight = torch.rand(5, generator=generator, dtype=torch.float64)
    for beta in (0.0, 0.3):
        loss, _ = training("rwr", pretraining=beta).loss(
            [Residuals(theta - target, ref - target)], {"score": weight, "weight": weight}
        )
        for b in range(5):
            own, apart = ((theta[b] - y[b]).square().mean() for y in (target, ref))
            assert loss[b].item() == pytest.approx((weight[b] * own + beta * apart).item())


@pytest.mark.parametrize("name", ["kto", "rwr"])
def test_only_desirable_images_that_get_worse_stop_a_training(name: str) -> None:
    about = {"sample": "image"} if name == "kto" else {}
    stage = training(name, batch=256, max_error_ratio=2.0, **about)
    row = {"ref_image": 0.1, "image_gap": 9.0, "ref_desirable": 0.05, "desirable_gap": 0.049}
    assert stage.health([row], key="train.x") == ""
    told = stage.health([row | {"desirable_gap": 0.06}], key="train.x")
    assert told.startswith("the error on the desirable images is 2.20 times the reference's, more")
    assert stage.health([row | {"ref_desirable": 0.0, "desirable_gap": 0.0}], key="k") == ""

"""What holds for every objective of the registry: a new one gets these tests for nothing."""

from __future__ import annotations

import pytest
import torch

from raypref.align.backprop_config import BackpropConfig
from raypref.align.config import TrainingConfig
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import RewardedConfig
from raypref.align.residuals import Residuals
from raypref.core.config import fields_of, results_of

B = 5
every = pytest.mark.parametrize("name", OBJECTIVES)
# The others follow the gradient of a reward: no loss of residuals (test_backprop.py).
WITH_LOSS = [name for name, kind in OBJECTIVES.items() if not issubclass(kind, BackpropConfig)]
every_loss = pytest.mark.parametrize("name", WITH_LOSS)


def made(name: str) -> TrainingConfig:
    return OBJECTIVES[name].model_validate({"objective": name})


def inputs(training: TrainingConfig) -> tuple[list[torch.Tensor], list[Residuals], dict]:
    """The learner's residuals, which take gradients, all residuals and the facts of B samples."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    learners, sides = [], []
    for _ in training.sides:
        reference = draw(B, 4, 8, 8)
        # A step or two from the reference: no logit is so far out that its loss is flat.
        learners.append((reference + 1e-4 * draw(B, 4, 8, 8)).requires_grad_())
        # Without a reference or policy, where the objective says that it reads none.
        policy = reference + 1e-4 * draw(B, 4, 8, 8) if training.reads_policy else None
        sides.append(Residuals(learners[-1], reference if training.against else None, policy))
    facts = {name: draw(B) for name in training.facts}
    if isinstance(training, RewardedConfig):  # shares and sizes
        facts |= {name: facts[name].sigmoid() for name in {*facts} - {"advantage", "coefficient"}}
    return learners, sides, facts


def portion(values: torch.Tensor | None, b: int) -> torch.Tensor | None:
    return None if values is None else values[b : b + 1]


@every
def test_its_settings_are_those_of_one_training(name: str) -> None:
    kind = OBJECTIVES[name]
    training = made(name)
    assert training.objective == name
    assert training.sides in (("chosen", "rejected"), ("chosen",), ("image",))
    for dotted, field in fields_of(kind):
        assert field.description, dotted
    decide = results_of({"t": training})
    assert not {"t.like", "t.label", "t.micro_batch"} & set(decide)


@every_loss
def test_its_loss_is_one_number_per_sample_with_a_gradient(name: str) -> None:
    training = made(name)
    learners, sides, facts = inputs(training)
    loss_B, metrics = training.loss(sides, facts)
    assert loss_B.shape == (B,) and bool(loss_B.isfinite().all())
    for key, values_B in metrics.items():
        assert values_B.shape == (B,) and not values_B.requires_grad, key
    gradients = torch.autograd.grad(loss_B.sum(), learners)
    assert float(sum(each.abs().sum() for each in gradients)) > 0


@every_loss
def test_a_samples_loss_does_not_depend_on_the_others(name: str) -> None:
    """Any split of a batch over micro-batches and workers gives the same gradients."""
    training = made(name)
    _, sides, facts = inputs(training)
    whole, metrics = training.loss(sides, facts)
    for b in range(B):
        one = [
            Residuals(*(portion(values, b) for values in (s.learner, s.reference, s.policy)))
            for s in sides
        ]
        loss, own = training.loss(one, {key: values[b : b + 1] for key, values in facts.items()})
        assert loss.item() == pytest.approx(whole[b].item(), rel=1e-9)
        for key, values in own.items():
            assert values.item() == pytest.approx(metrics[key][b].item(), rel=1e-9, abs=1e-15)

"""What predictions miss their targets by, and inner products of that per sample.

Every objective but reward gradients is a function of such inner products
(`docs/method.md`, section "Objectives").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from raypref.models import adapters
from raypref.models.families.base import Denoiser, under_guidance
from raypref.models.families.conditioning import Conditioning, twice

LEARNER, REFERENCE, POLICY = "learner", "ref", "policy"


class Draw(NamedTuple):
    """One entry of a batch: which pair, and the source of its randomness."""

    pair: int
    generator: torch.Generator


class Side(NamedTuple):
    """One side of B samples: noisy latents and what should be predicted there."""

    x_BCHW: Tensor
    target_BCHW: Tensor | None  # None: whatever the learner itself predicts there
    policy_BCHW: Tensor | None = None  # what the policy predicts there, where that is known


class Samples(NamedTuple):
    """B samples with one or two sides; all sides of a sample share timestep and caption."""

    sides: tuple[Side, ...]
    timesteps_B: Tensor
    prompts: Conditioning
    facts: Mapping[str, Tensor] = {}  # numbers carried with the samples, each [B]
    # Where predictions are guided: empty + guidance * (captioned - empty).
    unconditional: Conditioning | None = None  # the empty caption, B times
    guidance: float = 1.0

    def split(self, size: int) -> list[Samples]:
        """The same in portions of at most `size`."""
        starts = range(0, len(self.timesteps_B), size)
        return [self._portion(slice(start, start + size)) for start in starts]

    def _portion(self, some: slice) -> Samples:
        sides = tuple(
            Side(*(None if values is None else values[some] for values in side))  # type: ignore[arg-type]
            for side in self.sides
        )
        empty = None if self.unconditional is None else self.unconditional[some]
        return self._replace(
            sides=sides,
            timesteps_B=self.timesteps_B[some],
            prompts=self.prompts[some],
            facts={name: values[some] for name, values in self.facts.items()},
            unconditional=empty,
        )


@dataclass(frozen=True)
class Residuals:
    """Prediction minus target on one side of B samples, float32 or better, [B, C, H, W].

    The inner products are means over C, H, W, one per sample, [B], computed when asked for. Where
    errors count in a hole alone, residuals are 0 around it: so every product is one in the hole.
    Gradients flow through the learner's residual alone. An objective that compares with nothing
    (`against` is "") has no reference's residual and must not read what is made of it; one that
    does not say `reads_policy` has no policy's.
    """

    learner: Tensor
    reference: Tensor | None
    policy: Tensor | None = None

    @cached_property
    def error(self) -> Tensor:
        """The learner's denoising error."""
        return inner(self.learner, self.learner)

    @cached_property
    def reference_error(self) -> Tensor:
        """The reference's denoising error."""
        return inner(self._compared, self._compared)

    @cached_property
    def gap(self) -> Tensor:
        """The learner's error less the reference's.

        As <learner - reference, learner + reference>: where the two hardly differ, the difference
        of two large means would lose it in float32.
        """
        return inner(self.learner - self._compared, self.learner + self._compared)

    @cached_property
    def cross(self) -> Tensor:
        """The learner's residual times the reference's."""
        return inner(self.learner, self._compared)

    @cached_property
    def distance(self) -> Tensor:
        """The squared distance between the learner's prediction and the reference's."""
        apart = self.learner - self._compared
        return inner(apart, apart)

    @cached_property
    def policy_error(self) -> Tensor:
        """The policy's denoising error."""
        return inner(self._sampled, self._sampled)

    @cached_property
    def policy_gap(self) -> Tensor:
        """The learner's error less the policy's, computed as `gap` is."""
        return inner(self.learner - self._sampled, self.learner + self._sampled)

    @cached_property
    def policy_cross(self) -> Tensor:
        """The learner's residual times the policy's."""
        return inner(self.learner, self._sampled)

    @cached_property
    def policy_distance(self) -> Tensor:
        """The squared distance between the learner's prediction and the policy's."""
        apart = self.learner - self._sampled
        return inner(apart, apart)

    @property
    def _compared(self) -> Tensor:
        assert self.reference is not None, "an objective without a reference reads its residual"
        return self.reference

    @property
    def _sampled(self) -> Tensor:
        assert self.policy is not None, "an objective without reads_policy reads its residual"
        return self.policy


def between(one: Residuals, other: Residuals) -> Tensor:
    """The learner's residuals on two sides of a sample times each other: [B]."""
    return inner(one.learner, other.learner)


def inner(one_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
    """Inner products per sample, as means over C, H, W: [B]."""
    return (one_BCHW * other_BCHW).flatten(1).mean(1)


def within(hole_B1HW: Tensor, *, mean: str) -> Tensor:
    """What residuals are multiplied by so that they count in a hole alone, [B, 1, H, W].

    Args:
        hole_B1HW: 1 in the hole, 0 around it.
        mean: what their inner products are then divided by: the size of the whole `image`, or of
            the `hole`. A hole without a pixel gives products of 0 either way, and so no gradient.
    """
    hole_B1HW = hole_B1HW.to(torch.promote_types(hole_B1HW.dtype, torch.float32))
    if mean == "image":
        return hole_B1HW
    share_B111 = hole_B1HW.mean((1, 2, 3), keepdim=True)
    return hole_B1HW / share_B111.clamp(min=1 / hole_B1HW[0].numel()).sqrt()


def measure(
    denoiser: Denoiser,
    samples: Samples,
    *,
    against: str = REFERENCE,
    policy: bool = False,
    factor_B1HW: Tensor | None = None,
) -> list[Residuals]:
    """The residuals of the learner and of what it is compared with, one per side.

    All sides go through the network as one batch, but those whose target is the learner's own
    prediction: the residual there is 0 without a gradient, so nothing is kept for one. The
    reference comes first: adapters must not be switched between the learner's forward and its
    backward.

    Args:
        denoiser: the network with its adapters.
        samples: of one micro-batch.
        against: the adapter that the learner is compared with; "": none, and no forward of it.
        policy: whether the policy's residual is wanted too: a forward where no side knows it.
        factor_B1HW: of `within`, what residuals are multiplied by; None: nothing.
    """
    references = _frozen(denoiser, samples, against) if against else None
    policies = [side.policy_BCHW for side in samples.sides] if policy else None
    if policies and any(there is None for there in policies):
        shared = references is not None and against == POLICY
        policies = [*(references if shared and references else _frozen(denoiser, samples, POLICY))]
    adapters.activate(denoiser.module, LEARNER, train=True)
    own = {}
    for number, side in enumerate(samples.sides):
        if side.target_BCHW is None:
            with torch.no_grad():
                own[number] = _predict(denoiser, [side], samples)
    learned = [side for side in samples.sides if side.target_BCHW is not None]
    predicted = _predict(denoiser, learned, samples) if learned else None
    size = len(samples.timesteps_B)
    predictions = iter(() if predicted is None else predicted.split(size))
    found = []
    for number, side in enumerate(samples.sides):
        learner = own[number] if number in own else next(predictions)
        target = learner if side.target_BCHW is None else side.target_BCHW
        others = [
            None if there is None else _residual(there[number], target, factor_B1HW)  # type: ignore[arg-type]
            for there in (references, policies)
        ]
        found.append(Residuals(_residual(learner, target, factor_B1HW), *others))
    return found


def _frozen(denoiser: Denoiser, samples: Samples, name: str) -> Sequence[Tensor]:
    """What another adapter predicts, side by side, without a gradient."""
    adapters.activate(denoiser.module, name)
    with torch.no_grad():
        return _predict(denoiser, samples.sides, samples).split(len(samples.timesteps_B))


def _predict(denoiser: Denoiser, sides: Sequence[Side], samples: Samples) -> Tensor:
    timesteps_B, prompts, empty = samples.timesteps_B, samples.prompts, samples.unconditional
    x = sides[0].x_BCHW
    if len(sides) > 1:
        x, timesteps_B = torch.cat([side.x_BCHW for side in sides]), timesteps_B.repeat(2)
        prompts, empty = twice(prompts), None if empty is None else twice(empty)
    prediction = denoiser.predict(x, timesteps_B, prompts)
    if empty is None:
        return prediction
    without = denoiser.predict(x, timesteps_B, empty)
    return under_guidance(denoiser, prediction, without, samples.guidance)


def _residual(
    prediction_BCHW: Tensor, target_BCHW: Tensor, factor_B1HW: Tensor | None = None
) -> Tensor:
    precise = torch.promote_types(prediction_BCHW.dtype, torch.float32)
    missed_BCHW = prediction_BCHW.to(precise) - target_BCHW.to(precise)
    return missed_BCHW if factor_B1HW is None else missed_BCHW * factor_B1HW.to(precise)

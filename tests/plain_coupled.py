"""Trainings on steps of the policy's paths written out plainly, from likelihoods of torch's Normal.

Sums over single images, whole copies of the network as reference and policy. Nothing here knows
that a likelihood is a denoising error. An objective is one entry of `COUPLED`: a function of what
three networks say of one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from plain_lora import seeded
from plain_objectives import error, sigmoid
from plain_online import PlainOnline
from plain_training import SD15, T
from torch import Tensor
from torch.distributions import Normal, kl_divergence


class Taken(NamedTuple):
    """A step of a path, as the policy took it."""

    i: int
    t: float
    x: Tensor
    following: Tensor
    prediction: Tensor  # the policy's


class Said(NamedTuple):
    """What one network says of a step."""

    prediction: Tensor
    step: Normal
    log_likelihood: Tensor  # of the state that followed


class Stepped(NamedTuple):
    """One step of one image."""

    new: Said
    old: Said
    ref: Said
    weight: float  # |B|: how far the mean moves with the prediction
    advantage: float


def total(stage: Any, values: Tensor) -> Tensor:
    return values.mean() if stage.per_dimension else values.sum()


def kl(stage: Any, one: Stepped) -> Tensor:
    if stage.kl_of == "prediction":
        return error(one.new.prediction, one.ref.prediction)
    return total(stage, kl_divergence(one.new.step, one.ref.step))


def ppo(stage: Any, advantage: float, ratio: Tensor) -> Tensor:
    near = min(max(ratio.item(), 1 - stage.clip_range), 1 + stage.clip_range)
    free, held = -advantage * ratio, torch.tensor(-advantage * near, dtype=torch.float64)
    return free if free >= held else held


def ddpo(stage: Any, one: Stepped) -> Tensor:
    log_ratio = one.new.log_likelihood - one.old.log_likelihood
    if stage.estimator == "score_function":
        return -one.advantage * log_ratio
    return ppo(stage, one.advantage, log_ratio.exp()) + stage.kl * kl(stage, one)


def dpok(stage: Any, one: Stepped) -> Tensor:
    ratio = (one.new.log_likelihood - one.old.log_likelihood).exp()
    near = ratio.clamp(1 - stage.clip_range, 1 + stage.clip_range)
    return -one.advantage * near + stage.kl * kl(stage, one)


def flow_grpo(stage: Any, one: Stepped) -> Tensor:
    log_ratio = one.new.log_likelihood - one.old.log_likelihood
    if stage.ratio == "plain":
        return ppo(stage, one.advantage, log_ratio.exp()) + stage.kl * kl(stage, one)
    std = one.new.step.stddev.flatten()[0]
    bias = total(stage, (one.new.step.mean - one.old.step.mean) ** 2 / (2 * std**2))
    ratio = ((log_ratio + bias) * std).exp()
    return ppo(stage, one.advantage, ratio) / one.weight + stage.kl * kl(stage, one)


def d3po(stage: Any, chosen: Stepped, rejected: Stepped) -> Tensor:
    better, worse = (
        (one.new.log_likelihood - one.ref.log_likelihood).exp().clamp(1 - stage.eps, 1 + stage.eps)
        for one in (chosen, rejected)
    )
    return -torch.log(sigmoid(stage.beta * (better.log() - worse.log())))


@dataclass(frozen=True)
class CoupledEntry:
    """A formula, and settings in which it does what it is for."""

    formula: Callable[..., Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)


LAGS = {"reuse": 2, "policy_lag": 2}
COUPLED = {
    "ddpo": CoupledEntry(ddpo, {**LAGS, "timesteps": 2, "guidance": 2.0, "clip_range": 1e-5}),
    "ddpo-sum": CoupledEntry(
        ddpo, {**LAGS, "per_dimension": False, "clip_range": 1e-3, "kl": 1e-3, "eta": 0.8}
    ),
    "ddpo-sf": CoupledEntry(ddpo, {"estimator": "score_function", "guidance": 1.0, "eta": 0.5}),
    "dpok": CoupledEntry(dpok, {**LAGS, "kl": 0.5, "clip_range": 1e-5, "guidance": 1.0}),
    "d3po": CoupledEntry(d3po, {"group": 2, "rollout_steps": 2, "beta": 3.0, "guidance": 1.0}),
    "flow_grpo": CoupledEntry(flow_grpo, {**LAGS, "kl": 0.3, "clip_range": 1e-5}),
    "flow_grpo-guard": CoupledEntry(
        flow_grpo, {**LAGS, "ratio": "guard", "kl": 0.0, "guidance": 1.0, "clip_range": 1e-7}
    ),
    "flow_grpo-dance": CoupledEntry(
        flow_grpo,
        {"variant": "dance_grpo", "eta": 0.3, "shared_start": True, "kl": 0.0, "guidance": 1.0},
    ),
    "mix_grpo": CoupledEntry(
        flow_grpo, {"rollout_steps": 4, "window_size": 2, "window_every": 3, "timesteps": 2}
    ),
}


@dataclass
class PlainCoupled(PlainOnline):
    """A training on steps of the policy's paths."""

    paths: list[list[list[Taken]]] = field(default_factory=list)  # per prompt and image

    def loss(self, step: int, index: int) -> Tensor:
        """Of one sample: a step of an image, or of two."""
        stage = self.stage
        if index == 0:
            self.renew(step)
            if step // stage.reuse != self.block:
                self.block, self.paths = step // stage.reuse, []
                self.images = [self.drawn(prompt) for prompt in range(stage.pairs_per_step)]
        pair = stage.objective == "d3po"
        each = stage.timesteps * (1 if pair else stage.group)
        prompt, place = divmod(index, each)
        image, number = divmod(place, stage.timesteps)
        g = seeded(self.seed, self.name, "sample", step, prompt * stage.group + image)
        which = int(torch.randperm(len(self.paths[prompt][image]), generator=g)[number])
        formula = FORMULAS[stage.objective]
        if not pair:
            return formula(stage, self.stepped(prompt, image, which))
        rewards = self.images[prompt][2]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        sides = (self.stepped(prompt, which_image, which) for which_image in (best, worst))
        return formula(stage, *sides) * (max(rewards) > min(rewards))

    def rolled(self, prompt: int, text: str) -> list[Tensor]:
        """Clean latents of a group; their steps are noted."""
        stage, images = self.stage, range(self.stage.group)
        shape = self.moments(0, 1, False)[0].shape
        gs = [
            seeded(self.seed, self.name, "rollout", self.block, prompt * stage.group + image)
            for image in images
        ]
        xs = [torch.randn(shape, generator=g).double() for g in gs]
        if stage.shared_start:
            xs = [xs[0]] * len(xs)
        paths: list[list[Taken]] = [[] for _ in images]
        for i, t in enumerate(self.grid):
            with torch.no_grad():
                predictions = self.guided(self.policy, xs, [t] * len(xs), text)
            for image, prediction in enumerate(predictions):
                x = xs[image]
                mean, std = self.gaussian(i, x, prediction)
                xs[image] = mean
                if std > 0:
                    xs[image] = mean + std * torch.randn(shape, generator=gs[image]).double()
                    paths[image].append(Taken(i, t, x, xs[image], prediction))
        self.paths.append(paths)
        return xs

    @property
    def grid(self) -> list[float]:
        return self.family.even(self.stage.rollout_steps)

    def noisy(self, i: int) -> bool:
        """Whether a step has noise."""
        stage, last = self.stage, self.stage.rollout_steps - 1
        if stage.objective != "mix_grpo":
            return i < last
        moves = self.block * stage.reuse // stage.window_every
        places = list(range(0, last - stage.window_size + 1, stage.window_stride))
        return 0 <= i - places[moves % len(places)] < stage.window_size

    def gaussian(self, i: int, x: Tensor, prediction: Tensor) -> tuple[Tensor, float]:
        """Mean and deviation of a step."""
        grid, stage = self.grid, self.stage
        eta = stage.eta * self.noisy(i)
        if isinstance(self.family, SD15):
            abar = self.family.abar[int(grid[i])]
            after = self.family.abar[int(grid[i + 1])] if i + 1 < len(grid) else 1.0
            std = eta * math.sqrt((1 - after) / (1 - abar)) * math.sqrt(1 - abar / after)
            clean = (x - math.sqrt(1 - abar) * prediction) / math.sqrt(abar)
            return math.sqrt(after) * clean + math.sqrt(1 - after - std**2) * prediction, std
        sigmas = [t / T for t in [*grid, 0.0]]
        sigma, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
        s = eta
        if getattr(stage, "variant", "flow_grpo") == "flow_grpo":
            s = eta * math.sqrt(sigma / (1 - (sigmas[1] if sigma == 1 else sigma)))
        score = -(x + (1 - sigma) * prediction) / sigma
        return x + (prediction - s**2 / 2 * score) * dt, s * math.sqrt(-dt)

    def stepped(self, prompt: int, image: int, which: int) -> Stepped:
        """What the networks say of a step."""
        stage, (text, _, rewards) = self.stage, self.images[prompt]
        taken = self.paths[prompt][image][which]

        def said(prediction: Tensor) -> Said:
            mean, std = self.gaussian(taken.i, taken.x, prediction)
            step = Normal(mean, torch.full_like(mean, std))
            return Said(prediction, step, total(stage, step.log_prob(taken.following)))

        asked = [taken.x], [taken.t], text
        old = ref = said(taken.prediction)
        if stage.kl or stage.objective == "d3po":  # else nothing looks at the reference
            with torch.no_grad():
                ref = said(self.guided(self.reference, *asked)[0])
        zero = torch.zeros_like(taken.x)
        means = [self.gaussian(taken.i, taken.x, zero + by)[0] for by in (0.0, 1.0)]
        return Stepped(
            said(self.guided(self.learner, *asked)[0]),
            old,
            ref,
            (means[1] - means[0]).abs().mean().item(),
            self.advantage(rewards, image),
        )

    def advantage(self, rewards: Sequence[float], image: int) -> float:
        """Of an image: with one prompt per step, within the group whatever it is among."""
        mean = sum(rewards) / len(rewards)
        found = rewards[image] - mean
        if self.stage.advantage != "mean":
            found /= math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
        limit = self.stage.advantage_clip
        return min(max(found, -limit), limit)


FORMULAS = {name: entry.formula for name, entry in COUPLED.items()}

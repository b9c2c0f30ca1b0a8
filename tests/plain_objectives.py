"""Every objective on pairs as a formula on plain tensors, with the settings it is trained with.

One sample at a time, [C, H, W]: predictions of the network that learns and of the one it is
compared with, and their targets. Nothing here knows of inner products. An objective is one entry
of `ENTRIES`; `test_trained_objectives.py` trains each on both layouts against `plain_training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """What is trained on: caption, chosen and rejected image, and numbers of each row."""

    pairs: list[tuple[str, Any, Any]]
    facts: dict[str, list[float]]


class Sample(NamedTuple):
    """What a loss may read of one sample. Of `chosen` and `rejected` each: phi, ref, target."""

    chosen: tuple[Tensor, Tensor, Tensor]
    rejected: tuple[Tensor, Tensor, Tensor]
    facts: Mapping[str, float] = {}  # columns of the pair
    t: float = 0.0  # timestep, 0 .. 1000
    earlier: Sequence[float] = ()  # per earlier step but the last, mean gap of the sides it reads


@dataclass(frozen=True)
class Entry:
    """A formula, and the settings of 20 steps in which it does what it is for."""

    formula: Callable[[Any, Sample], Tensor]  # settings of the training, sample -> its loss
    settings: Mapping[str, Any] = field(default_factory=dict)
    rows: Callable[[Any, Rows], Rows] = lambda stage, rows: rows  # what it trains on


def error(phi: Tensor, target: Tensor) -> Tensor:
    """Mean squared error."""
    return ((phi - target) ** 2).sum() / target.numel()


def gap(side: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The learner's error less the reference's."""
    phi, ref, target = side
    return error(phi, target) - error(ref, target)


def logit(stage: Any, sample: Sample) -> Tensor:
    """Of Diffusion-DPO."""
    return -stage.beta / 2 * (gap(sample.chosen) - gap(sample.rejected))


def sigmoid(x: Tensor) -> Tensor:
    """Written out."""
    return 1 / (1 + torch.exp(-x))


def dpo(stage: Any, sample: Sample) -> Tensor:
    return torch.log(1 + torch.exp(-logit(stage, sample)))


def ipo(stage: Any, sample: Sample) -> Tensor:
    return (logit(stage, sample) - 0.5) ** 2


def hinge(stage: Any, sample: Sample) -> Tensor:
    return torch.maximum(1 - logit(stage, sample), torch.zeros((), dtype=torch.float64))


def kto(stage: Any, sample: Sample) -> Tensor:
    utility = {
        "sigmoid": sigmoid,
        "loss_averse": lambda x: torch.log(sigmoid(x)),
        "risk_seeking": lambda x: -torch.log(1 - sigmoid(x)),
    }[stage.utility]
    point = 0.0
    if stage.reference_point == "average" and sample.earlier:
        recent = sample.earlier[-math.ceil(256 / stage.batch) :]
        point = max(0.0, sum(-stage.beta / 2 * each for each in recent) / len(recent))
    better = -stage.beta / 2 * gap(sample.chosen) - point
    good = stage.desirable_weight * (1 - utility(better))
    if stage.sample == "image":
        bad = stage.undesirable_weight * (1 - utility(-better))
        return good if sample.facts["score"] > stage.desirable_above else bad
    worse = -stage.beta / 2 * gap(sample.rejected) - point
    return good + stage.undesirable_weight * (1 - utility(-worse))


def alone(stage: Any, rows: Rows) -> Rows:
    """Every image a row, beside itself: the chosen ones have score 1, the rejected ones 0."""
    images = [(text, image, image) for text, *both in rows.pairs for image in both]
    facts = {name: [v for v in values for _ in range(2)] for name, values in rows.facts.items()}
    return Rows(images, facts | {"score": [1.0, 0.0] * len(rows.pairs)})


def alone_or_not(stage: Any, rows: Rows) -> Rows:
    return alone(stage, rows) if stage.sample == "image" else rows


def rwr(stage: Any, sample: Sample) -> Tensor:
    phi, ref, target = sample.chosen
    return sample.facts["w"] * error(phi, target) + stage.pretraining * error(phi, ref)


def weighted(stage: Any, rows: Rows) -> Rows:
    images = alone(stage, rows)
    raised = [math.exp(score / stage.temperature) for score in images.facts["score"]]
    mean = sum(raised) / len(raised)
    return Rows(images.pairs, images.facts | {"w": [each / mean for each in raised]})


def best(stage: Any, rows: Rows) -> Rows:
    images = alone(stage, rows)
    scores, prompts = images.facts["score"], images.facts["prompt"]
    kept = []
    for i in range(len(scores)):
        ahead = [
            j
            for j in range(len(scores))
            if prompts[j] == prompts[i] and (-scores[j], j) < (-scores[i], i)
        ]
        if len(ahead) < stage.best:
            kept.append(i)
    facts = {name: [values[i] for i in kept] for name, values in images.facts.items()}
    return Rows([images.pairs[i] for i in kept], facts)


def dpo_sft(stage: Any, sample: Sample) -> Tensor:
    phi, _, target = sample.chosen
    return dpo(stage, sample) + stage.sft_weight * stage.beta / 2 * error(phi, target)


def sft(stage: Any, sample: Sample) -> Tensor:
    phi, _, target = sample.chosen
    return error(phi, target)


def arena(stage: Any, sample: Sample) -> Tensor:
    target = stage.gamma * sample.facts["gap"]
    if stage.variant == "margin":
        return torch.log(1 + torch.exp(target - logit(stage, sample)))
    if stage.variant == "weight":
        return sample.facts["gap"] ** stage.gamma * dpo(stage, sample)
    return (logit(stage, sample) - target) ** 2


def fixed_margin(stage: Any, sample: Sample) -> Tensor:
    return torch.log(1 + torch.exp(stage.gamma - logit(stage, sample)))


def dro(stage: Any, sample: Sample) -> Tensor:
    margin = torch.tensor(stage.margin, dtype=torch.float64)
    return torch.maximum(gap(sample.chosen) - gap(sample.rejected), margin)


BETA = {"beta": 100.0}
# By the objective's name; `dro`, which samples from its policy, has its own test of exactness.
ENTRIES: dict[str, Entry] = {
    "dpo": Entry(dpo, BETA),
    "ipo": Entry(ipo, BETA),
    "hinge": Entry(hinge, BETA),
    "kto": Entry(kto, BETA, alone_or_not),
    "rwr": Entry(rwr, {"temperature": 0.5, "pretraining": 0.3}, weighted),
    "raft": Entry(sft, {}, best),
    "dpo_sft": Entry(dpo_sft, BETA | {"sft_weight": 0.2}),
    "sft": Entry(sft),
    "arena": Entry(arena, BETA | {"gamma": 1.5}),
    "fixed_margin": Entry(fixed_margin, BETA | {"gamma": 0.5}),
}
FORMULAS = {"dro": dro} | {name: entry.formula for name, entry in ENTRIES.items()}

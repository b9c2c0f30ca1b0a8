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
    also: tuple[Mapping[str, Any], ...] = ()  # other settings, compared on random tensors alone


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


def capo(stage: Any, sample: Sample) -> Tensor:
    wanted = sample.facts["score_chosen"] - sample.facts["score_rejected"]
    return (wanted - logit(stage, sample)) ** 2


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
    return sample.facts["weight"] * error(phi, target) + stage.pretraining * error(phi, ref)


def weighted(stage: Any, rows: Rows) -> Rows:
    images = alone(stage, rows)
    raised = [math.exp(score / stage.temperature) for score in images.facts["score"]]
    mean = sum(raised) / len(raised)
    return Rows(images.pairs, images.facts | {"weight": [each / mean for each in raised]})


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


def cdpo(stage: Any, sample: Sample) -> Tensor:
    right = sigmoid(logit(stage, sample))
    q = stage.label_noise
    return -(1 - q) * torch.log(right) - q * torch.log(1 - right)


def rdpo(stage: Any, sample: Sample) -> Tensor:
    right = sigmoid(logit(stage, sample))
    q = stage.label_noise
    return (-(1 - q) * torch.log(right) + q * torch.log(1 - right)) / (1 - 2 * q)


def smpo(stage: Any, sample: Sample) -> Tensor:
    facts, scale = sample.facts, stage.scale
    if stage.label_from == "scores":
        chosen, rejected = (
            math.exp(scale * facts[f"pickscore_{side}"]) for side in ("chosen", "rejected")
        )
        p = chosen / (chosen + rejected)
    elif stage.label_from == "gap":
        p = 1 / (1 + math.exp(-scale * facts["gap"]))
    else:
        p = facts["vote_share"]
    return -torch.log(sigmoid(stage.sharpness * (2 * p - 1) * logit(stage, sample)))


def sdpo(stage: Any, sample: Sample) -> Tensor:
    (phi_w, _, y_w), (phi_l, ref_l, y_l) = sample.chosen, sample.rejected
    w, l_ = (phi_w - y_w).detach(), (phi_l - y_l).detach()
    along = (w * l_).sum()
    share = 1.0 if along <= 0 else min(1.0, ((1 - stage.mu) * (w * w).sum() / along).item())
    rejected = error(phi_l, y_l)
    rejected = rejected.detach() + share * (rejected - rejected.detach())
    diff = gap(sample.chosen) - (rejected - error(ref_l, y_l))
    return -torch.log(sigmoid(-stage.beta / 2 * diff))


def dspo(stage: Any, sample: Sample) -> Tensor:
    phi, ref, target = sample.chosen
    k = stage.beta * (1 - sigmoid(logit(stage, sample)))
    return (((phi - target) - k * (phi - ref)) ** 2).sum() / target.numel()


def dmpo(stage: Any, sample: Sample) -> Tensor:
    p, right = sigmoid(logit(stage, sample)), 1 - stage.alpha
    return p * torch.log(p / right) + (1 - p) * torch.log((1 - p) / (1 - right))


def fdpo(stage: Any, sample: Sample) -> Tensor:
    def slope(side: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        u = torch.exp(-stage.horizon / 2 * gap(side))
        if stage.divergence == "reverse_kl":
            return torch.log(u) + 1
        if stage.divergence == "forward_kl":
            return -1 / u
        if stage.divergence == "js":
            return torch.log(2 * u / (1 + u))
        return (1 - u**-stage.alpha) / stage.alpha

    diff = slope(sample.chosen) - slope(sample.rejected)
    return -torch.log(sigmoid(stage.beta / stage.horizon * diff))


def linear_dpo(stage: Any, sample: Sample) -> Tensor:
    diff = (gap(sample.chosen) - gap(sample.rejected)).item()
    weight = min(max(0.2 * stage.beta * diff + 0.5, stage.eta), 1 - stage.eta)
    (phi_w, _, y_w), (phi_l, _, y_l) = sample.chosen, sample.rejected
    return weight * (error(phi_w, y_w) - error(phi_l, y_l))


def mapo(stage: Any, sample: Sample) -> Tensor:
    def odds(side: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        scaled = stage.snr * error(side[0], side[2])
        return scaled / (torch.exp(scaled) - 1)

    phi, _, target = sample.chosen
    preferred = sigmoid(stage.horizon * (odds(sample.chosen) - odds(sample.rejected)))
    return error(phi, target) - stage.beta * torch.log(preferred)


def simpo(stage: Any, sample: Sample) -> Tensor:
    (phi_w, _, y_w), (phi_l, _, y_l) = sample.chosen, sample.rejected
    scaled = -stage.beta / 2 * (error(phi_w, y_w) - error(phi_l, y_l))
    return -torch.log(sigmoid(scaled - stage.gamma))


BETA = {"beta": 100.0}
KTO_FORMS = tuple(
    {"utility": name, "desirable_weight": 0.7, "undesirable_weight": 1.3, "beta": 5.0}
    for name in ("sigmoid", "loss_averse", "risk_seeking")
)
# By the objective's name, and what comes behind a hyphen where there are several; `dro` has its own
# test of exactness.
ENTRIES: dict[str, Entry] = {
    "dpo": Entry(dpo, BETA, also=({"beta": 1.0},)),
    "dpo-discount": Entry(dpo, BETA | {"discount": 0.2}),
    "ipo": Entry(ipo, BETA),
    "capo": Entry(capo, {"beta": 10.0}, also=(BETA,)),
    "hinge": Entry(hinge, BETA),
    "kto": Entry(kto, BETA, also=KTO_FORMS, rows=alone_or_not),
    "rwr": Entry(rwr, {"temperature": 0.5, "pretraining": 0.3}, rows=weighted),
    "raft": Entry(sft, rows=best),
    "dpo_sft": Entry(dpo_sft, BETA | {"sft_weight": 0.2}),
    "sft": Entry(sft),
    "cdpo": Entry(cdpo, BETA | {"label_noise": 0.2}),
    "rdpo": Entry(rdpo, BETA | {"label_noise": 0.2}),
    "smpo": Entry(
        smpo,
        BETA,
        also=({"label_from": "gap", "scale": 2.0, **BETA}, {"label_from": "votes", **BETA}),
    ),
    "sdpo": Entry(sdpo, BETA, also=({"mu": 0.0, **BETA},)),
    "dspo": Entry(dspo, {"beta": 0.5}),
    "dmpo": Entry(dmpo, BETA | {"alpha": 0.05}),
    "fdpo": Entry(
        fdpo,
        BETA | {"horizon": 50.0},
        also=tuple(
            {"divergence": name, "horizon": 5.0, **BETA}
            for name in ("reverse_kl", "forward_kl", "js", "alpha")
        ),
    ),
    "linear_dpo": Entry(linear_dpo, BETA | {"eta": 0.1}, also=({"beta": 5.0},)),
    "mapo": Entry(mapo, {"horizon": 10.0}),
    "simpo": Entry(simpo, {"beta": 5.0}),
    "spin": Entry(dpo, BETA | {"rollout_steps": 3, "policy_lag": 7}),
    "arena": Entry(arena, BETA | {"gamma": 1.5}),
    "fixed_margin": Entry(fixed_margin, BETA | {"gamma": 0.5}),
}
FORMULAS = {"dro": dro} | {name: entry.formula for name, entry in ENTRIES.items()}

"""Online trainings written out plainly: rollouts, decoded and scored, and losses on plain tensors.

Sums over single images, whole copies of the network as reference and policy. Nothing here knows of
inner products, of a first pass, or of how far a prediction's error is one of the clean latents. An
objective is one entry of `ONLINE`: a function of the samples of a group at one timestep each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from plain_lora import seeded
from plain_objectives import error, sigmoid
from plain_training import SD15, Plain, T
from torch import Tensor


class Noised(NamedTuple):
    """One image of a group, noised: predictions and what is known of it. Tensors are [C, H, W]."""

    phi: Tensor  # of the network that learns
    old: Tensor  # of the policy
    ref: Tensor
    target: Tensor
    clean: Callable[[Tensor], Tensor]  # a prediction as clean latents
    share: float  # of noise, 0 to 1
    reward: float
    advantage: float


def gap(one: Noised) -> Tensor:
    """The learner's error less the reference's."""
    return error(one.phi, one.target) - error(one.ref, one.target)


def nft(stage: Any, one: Noised) -> Tensor:
    good = min(max(one.advantage / stage.advantage_clip, -1.0), 1.0) / 2 + 0.5

    def miss(prediction: Tensor) -> Tensor:
        apart = prediction - one.target
        if stage.space == "clean":
            apart = one.clean(prediction) - one.clean(one.target)
        size = apart.detach().abs().mean().clamp(min=1e-5) if stage.normalise != "off" else 1.0
        return (apart**2 / size).mean()

    towards = miss(stage.beta * one.phi + (1 - stage.beta) * one.old)
    away = miss((1 + stage.beta) * one.old - stage.beta * one.phi)
    both = good * towards / stage.beta + (1 - good) * away / stage.beta
    return stage.advantage_clip * both + stage.kl * error(one.phi, one.ref)


def awm(stage: Any, one: Noised) -> Tensor:
    def log_likelihood(prediction: Tensor) -> Tensor:
        missed, t = error(prediction, one.target), one.share
        return {
            "uniform": lambda: -missed,
            "t": lambda: -missed * t,
            "t2": lambda: -missed * t * t,
            "root": lambda: -(torch.sqrt(missed + 1e-10) - 1e-5) * t,
            "power": lambda: (
                -((missed + 1e-10) ** stage.power - 1e-10**stage.power) * t / stage.power
            ),
        }[stage.weighting]()

    ratio = torch.exp(log_likelihood(one.phi) - log_likelihood(one.old))
    near = min(max(ratio.item(), 1 - stage.clip_range), 1 + stage.clip_range)
    advantage = one.advantage * stage.advantage_scale
    free, held = -advantage * ratio, torch.tensor(-advantage * near, dtype=torch.float64)
    loss = free if free >= held else held
    loss = loss + stage.policy_kl * error(one.phi, one.old)
    return loss + stage.kl * error(one.phi, one.ref)


def dgpo(stage: Any, group: Sequence[Noised]) -> Tensor:
    """As a preference between groups, times group / beta."""
    lost, kl = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for one in group:
        apart = gap(one)
        ratio = math.exp(error(one.old, one.target).item() - error(one.phi, one.target).item())
        far = ratio > 1 + stage.clip_range if one.advantage > 0 else ratio < 1 - stage.clip_range
        if stage.clip_range and far:
            apart = apart.detach()
        lost = lost + stage.beta / len(group) * one.advantage * apart
        kl = kl + error(one.phi, one.ref)
    return -len(group) / stage.beta * torch.log(sigmoid(-lost)) + stage.kl * kl


def crd(stage: Any, group: Sequence[Noised]) -> Tensor:
    """Differences within the group of the log-ratio, and of the advantage."""

    def miss(prediction: Tensor, target: Tensor) -> Tensor:
        apart = prediction - target
        return (apart**2).mean() / (apart.detach().abs().mean() if stage.normalise != "off" else 1)

    def log_ratio(one: Noised) -> Tensor:
        other = one.old if stage.relative_to == "policy" else one.ref
        return miss(other, one.target) - miss(one.phi, one.target)

    ratios = torch.stack([log_ratio(one) for one in group])
    wanted = torch.tensor([one.advantage for one in group], dtype=torch.float64)
    loss = ((stage.beta * (ratios - ratios.mean()) - (wanted - wanted.mean())) ** 2).sum()
    for one in group:
        share = min(max(one.reward, 0.0), 1.0) if stage.kl_by_reward else 1.0
        loss = loss + stage.kl * share * error(one.phi, one.ref)
    return loss


def online_dpo(stage: Any, group: Sequence[Noised]) -> Tensor:
    best = max(group, key=lambda one: one.reward)
    worst = min(group, key=lambda one: one.reward)
    logit = -stage.beta / 2 * (gap(best) - gap(worst))
    kl = stage.kl * (error(best.phi, best.ref) + error(worst.phi, worst.ref)) / 2
    return torch.log(1 + torch.exp(-logit)) * (best.reward > worst.reward) + kl


def online_rwr(stage: Any, group: Sequence[Noised]) -> Tensor:
    if stage.weighting == "cutoff":
        weights = [float(one.reward >= stage.cutoff) for one in group]
    else:
        raised = [math.exp(one.advantage / stage.temperature) for one in group]
        weights = [len(group) * each / sum(raised) for each in raised]
    pairs = zip(weights, group, strict=True)
    return sum(w * error(x.phi, x.target) + stage.kl * error(x.phi, x.ref) for w, x in pairs)  # type: ignore[return-value]


def online_raft(stage: Any, group: Sequence[Noised]) -> Tensor:
    kept = sorted(group, key=lambda one: -one.reward)[: stage.best]
    return sum(error(x.phi, x.target) + stage.kl * error(x.phi, x.ref) for x in kept)  # type: ignore[return-value]


def each(loss: Callable[[Any, Noised], Tensor]) -> Callable[[Any, Sequence[Noised]], Tensor]:
    """The sum over a group of a loss of single images."""
    return lambda stage, group: sum(loss(stage, one) for one in group)  # type: ignore[return-value]


@dataclass(frozen=True)
class OnlineEntry:
    """A formula, and settings in which it does what it is for."""

    formula: Callable[[Any, Sequence[Noised]], Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[Mapping[str, Any], ...] = ()  # compared on random tensors alone


PLAIN_NFT = {"space": "prediction", "normalise": "off", "kl": 0.0, "beta": 0.3}
ONLINE: dict[str, OnlineEntry] = {
    "nft": OnlineEntry(
        each(nft),
        {"beta": 0.4},
        also=({}, PLAIN_NFT, {"space": "prediction"}, {"normalise": "off", "kl": 0.3}),
    ),
    "awm": OnlineEntry(
        each(awm),
        {"reuse": 2, "policy_lag": 2, "clip_range": 5e-6, "advantage_scale": 1.0},
        also=tuple(
            {"weighting": name, "clip_range": clip, "kl": 0.2, "policy_kl": 0.4}
            for name in ("uniform", "t", "t2", "root", "power")
            for clip in (0.01, 1.0)
        ),
    ),
    "pref_grpo": OnlineEntry(each(awm), {"weighting": "uniform", "guidance": 3.0}),
    "dgpo": OnlineEntry(
        dgpo,
        {"clip_range": 1e-6, "group": 3},
        also=({"clip_range": 0.0, "shared_noise": False, "beta": 3.0}, {"clip_range": 0.05}),
    ),
    "crd": OnlineEntry(
        crd,
        {"policy_keep": 0.6, "group": 3},
        also=(
            {"normalise": "off", "kl_by_reward": True},
            {"relative_to": "reference", "beta": 3.0},
            {"relative_to": "reference", "normalise": "off", "kl": 0.0},
        ),
    ),
    "online_dpo": OnlineEntry(online_dpo, {"beta": 100.0, "kl": 0.2}, also=({"beta": 1.0},)),
    "online_rwr": OnlineEntry(
        online_rwr,
        {"temperature": 0.5, "kl": 0.1},
        also=({"weighting": "cutoff", "cutoff": 0.3}, {"advantage": "mean"}),
    ),
    "online_raft": OnlineEntry(
        online_raft, {"timesteps": 2, "group": 3}, also=({"best": 2, "kl": 0.2},)
    ),
}
SHARED = ("dgpo", "online_dpo")  # the images of a group have one timestep and noise


@dataclass
class PlainOnline(Plain):
    """A training on the policy's own images: `step` draws, scores and learns."""

    judge: Callable[[np.ndarray], float] = lambda pixels: 0.0  # of [H, W, 3], uint8
    block: int = -1
    images: list[Any] = field(default_factory=list)  # per prompt (text, latents, rewards)

    def loss(self, step: int, index: int) -> Tensor:
        """The sum over one group at one timestep each; 0 when a step's groups are through."""
        stage = self.stage
        if index == 0:
            self.renew(step)
            if step // stage.reuse != self.block:
                self.block = step // stage.reuse
                self.images = [self.drawn(prompt) for prompt in range(stage.pairs_per_step)]
        prompt, time = divmod(index, stage.timesteps)
        if prompt >= stage.pairs_per_step:
            return 0 * self.parameters[0].sum()
        return ONLINE[stage.objective].formula(stage, self.group(step, prompt, time))

    def renew(self, step: int) -> None:
        """The policy, of which `Plain.step` made a copy of the learner: it may keep a part."""
        stage = self.stage
        if step % stage.policy_lag == 0:
            own = [p for n, p in self.policy.named_parameters() if n.endswith((".down", ".up"))]
            if step and stage.policy_keep:
                for p, before in zip(own, self.kept, strict=True):
                    p.data = stage.policy_keep * before + (1 - stage.policy_keep) * p.data
            self.kept = [p.detach().clone() for p in own]

    def drawn(self, prompt: int) -> tuple[str, list[Tensor], list[float]]:
        """A group of images of the block's n-th prompt."""
        stage, family = self.stage, self.family
        epoch, place = divmod(self.block * stage.pairs_per_step + prompt, len(self.pairs))
        order = torch.randperm(
            len(self.pairs), generator=seeded(self.seed, self.name, "epoch", epoch)
        )
        text = self.pairs[int(order[place])][0]
        latents, rewards = self.rolled(prompt, text), []
        for done in latents:
            with torch.no_grad():
                vae = family.pipe.vae
                scaled = done / vae.config.scaling_factor + (vae.config.shift_factor or 0)
                pixels = (vae.decode(scaled[None]).sample[0] / 2 + 0.5).clamp(0, 1)
            levels = (pixels.float() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            rewards.append(self.judge(levels))
        return text, latents, rewards

    def rolled(self, prompt: int, text: str) -> list[Tensor]:
        """The clean latents of a group, by the family's own solver."""
        stage, family, starts = self.stage, self.family, []

        def predict(x: Tensor, t: float) -> Tensor:
            return self.guided(self.policy, [*x], [t] * len(x), text)

        for image in range(stage.group):
            number = prompt * stage.group + image
            g = seeded(self.seed, self.name, "rollout", self.block, number)
            starts.append(torch.randn(self.moments(0, 1, False)[0].shape, generator=g).double())
        with torch.no_grad():
            grid = family.even(stage.rollout_steps)
            *_, done = family.rollout(predict, torch.stack(starts), grid)
        return [*done]

    def group(self, step: int, prompt: int, time: int) -> list[Noised]:
        """The images of a group, noised."""
        stage, family = self.stage, self.family
        text, latents, rewards = self.images[prompt]
        if stage.advantage in ("rank", "win_rate"):
            beaten = [
                sum((r > other) + 0.5 * (r == other) for other in rewards) - 0.5 for r in rewards
            ]
            values = [n / (stage.group - 1) for n in beaten]
        else:
            values = rewards
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        xs, ts, targets = [], [], []
        for image, latent in enumerate(latents):
            number = prompt * stage.group + (0 if stage.objective in SHARED else image)
            g = seeded(self.seed, self.name, "sample", step, number)
            for _ in range(time + 1):
                t = family.draw_timestep(g)
                while self.share(t) < getattr(stage, "least_level", 0.0):
                    t = family.draw_timestep(g)
                noise = torch.randn(latent.shape, generator=g).double()
            xs.append(family.noised(latent, noise, t))
            ts.append(t)
            targets.append(family.target(latent, noise))
        asked = xs, ts, [self.prompt(text)] * len(xs)
        with torch.no_grad():
            old, ref = (family.many(m, *asked) for m in (self.policy, self.reference))
        phi = family.many(self.learner, *asked)
        return [
            Noised(
                phi[i],
                old[i],
                ref[i],
                targets[i],
                lambda prediction, x=xs[i], t=ts[i]: self.clean(x, prediction, t),
                self.share(ts[i]),
                rewards[i],
                (values[i] - mean) / deviation,
            )
            for i in range(len(xs))
        ]

    def share(self, t: float) -> float:
        """Of noise in a latent."""
        if not isinstance(self.family, SD15):
            return t / T
        image, noise = self._parts(t)
        return noise / (image + noise)

    def clean(self, x: Tensor, prediction: Tensor, t: float) -> Tensor:
        """The clean latents that a prediction at a noisy latent means."""
        if not isinstance(self.family, SD15):
            return x - t / T * prediction
        image, noise = self._parts(t)
        return (x - noise * prediction) / image

    def _parts(self, t: float) -> tuple[float, float]:
        abar = self.family.abar[int(t)]
        return math.sqrt(abar), math.sqrt(1 - abar)

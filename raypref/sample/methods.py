"""Inference-time methods, as functions of a sampler and a reward: noise in, the chosen image out.

All are of one prompt and one seed. Noise and latents are [N, C, h, w], rewards float64 [N].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Reward = Callable[[Tensor], Tensor]  # of latents: float64 [N]


class Sampler(Protocol):
    """Draws images of one prompt."""

    steps: int

    def finished(self, noise_NCHW: Tensor) -> Tensor:
        """Clean latents; the gradient flows to the noise."""

    def step(self, i: int, x_NCHW: Tensor, last_x0: Tensor | None) -> tuple[Tensor, Tensor]:
        """Latents at step i + 1 and the clean prediction of step i, i = 0 .. steps - 1."""

    def scales(self, i: int) -> tuple[float, float]:
        """Of latents at step i: what image and noise are multiplied by."""


class Chosen(NamedTuple):
    """An image and what it took."""

    latents_1CHW: Tensor
    reward: float
    images: int  # that the method looked at, decoded and scored


def best_of(sampler: Sampler, reward: Reward, noise_NCHW: Tensor) -> Chosen:
    """The image of the highest reward; the first of equals."""
    with torch.no_grad():
        latents = sampler.finished(noise_NCHW)
        return _best(latents, reward(latents), len(latents))


def noise_search(
    sampler: Sampler,
    reward: Reward,
    noise_1CHW: Tensor,
    fresh: Callable[[int], Tensor],
    *,
    rounds: int,
    neighbours: int,
    spread: float,
) -> Chosen:
    """Zero-order search (Ma et al., arXiv 2501.09732): keep the best noise, try neighbours, repeat.

    A neighbour is sqrt(1 - spread) noise + sqrt(spread) fresh noise: Gaussian as the noise is. The
    reward never falls.

    Args:
        sampler: draws.
        reward: judges.
        noise_1CHW: where the search starts.
        fresh: Gaussian noise, so many.
        rounds: of the search.
        neighbours: per round.
        spread: 0 to 1.
    """
    pivot = noise_1CHW
    best = best_of(sampler, reward, pivot)
    for _ in range(rounds):
        near = math.sqrt(1 - spread) * pivot + math.sqrt(spread) * fresh(neighbours)
        with torch.no_grad():
            latents = sampler.finished(near)
            found_N = reward(latents)
        images = best.images + neighbours
        place = _argmax(found_N)
        if found_N[place] > best.reward:
            pivot = near[place : place + 1]
            best = Chosen(latents[place : place + 1], float(found_N[place]), images)
        else:
            best = best._replace(images=images)
    return best


def fk_steering(
    sampler: Sampler,
    reward: Reward,
    noise_NCHW: Tensor,
    fresh: Callable[[int], Tensor],
    uniform: Callable[[], float],
    *,
    every: int,
    potential: str,
    strength: float,
    churn: float,
) -> Chosen:
    """Feynman-Kac steering (arXiv 2501.06848): particles resampled by the reward of predicted x0.

    The published sampler is stochastic in every step. Ours are deterministic, so copies of a
    particle, but the first, get new noise at their level: variance `churn` of what is there. With
    strength 0 nothing is resampled, and the result is that of `best_of`.

    Args:
        sampler: draws.
        reward: judges clean predictions and finished images.
        noise_NCHW: one per particle.
        fresh: Gaussian noise, so many.
        uniform: a number in [0, 1), for systematic resampling.
        every: steps between two resamplings.
        potential: "max", "difference" or "sum".
        strength: lambda of the paper.
        churn: 0 to 1.
    """
    x, last_x0 = noise_NCHW, None
    count, images = len(x), 0
    past_N: Tensor | None = None
    for i in range(sampler.steps):
        with torch.no_grad():
            x, last_x0 = sampler.step(i, x, last_x0)
        if strength == 0 or (i + 1) % every or i + 1 == sampler.steps:
            continue
        now_N = reward(last_x0)
        images += count
        log_N, past_N = log_potential(potential, now_N, past_N)
        ancestors = systematic(torch.softmax(strength * log_N, 0), uniform())
        x, last_x0, past_N = x[ancestors], last_x0[ancestors], past_N[ancestors.cpu()]
        copies = [k for k in range(1, count) if ancestors[k] == ancestors[k - 1]]
        if copies and churn:
            image, noise = sampler.scales(i + 1)
            own = (x[copies] - image * last_x0[copies]) / noise
            new = math.sqrt(1 - churn) * own + math.sqrt(churn) * fresh(len(copies))
            x = x.clone()
            x[copies] = image * last_x0[copies] + noise * new
    return _best(x, reward(x), images + count)


def log_potential(kind: str, now_N: Tensor, past_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """The logarithm of each particle's potential at strength 1, and what it remembers.

    Args:
        kind: "max": the best reward so far; "difference": what it rose by; "sum": of all so far.
        now_N: rewards of the clean predictions.
        past_N: what was remembered; None at first, where all three are the reward.
    """
    if past_N is None:
        return now_N, now_N
    if kind == "max":
        best_N = torch.maximum(past_N, now_N)
        return best_N, best_N
    if kind == "sum":
        return past_N + now_N, past_N + now_N
    return now_N - past_N, now_N


def systematic(weight_N: Tensor, offset: float) -> Tensor:
    """Ancestors of N particles, ascending [N]: each appears N times its weight, rounded either way.

    Args:
        weight_N: that sum to 1.
        offset: in [0, 1); equal weights then choose each particle once.
    """
    count = len(weight_N)
    at_N = (torch.arange(count, dtype=torch.float64) + offset) / count
    edges_N = weight_N.double().cpu().cumsum(0)
    edges_N = edges_N / edges_N[-1]
    return torch.searchsorted(edges_N, at_N, right=True).clamp(max=count - 1)


def reno(
    sampler: Sampler,
    reward: Reward,
    differentiable: Reward,
    noise_1CHW: Tensor,
    *,
    ascents: int,
    rate: float,
    clip: float,
    regulariser: float,
) -> Chosen:
    """Reward-based noise optimisation (ReNO, arXiv 2406.04312): gradient ascent on the noise.

    Ascends reward + regulariser * ((d - 1) log |noise| - |noise|^2 / 2): the log-density of the
    length of d Gaussian numbers. The best image on the way is kept, the first among them. As in the
    released code the optimizer is SGD with Nesterov's momentum of 0.9.

    Args:
        sampler: draws.
        reward: judges what is kept.
        differentiable: the reward with a gradient to the latents.
        noise_1CHW: where the ascent starts.
        ascents: steps.
        rate: learning rate.
        clip: longest gradient, as a norm over all of the noise.
        regulariser: weight.
    """
    noise = noise_1CHW.detach().clone().requires_grad_()
    optimizer = torch.optim.SGD([noise], lr=rate, momentum=0.9, nesterov=True, maximize=True)
    best: Chosen | None = None
    for number in range(ascents + 1):
        latents = sampler.finished(noise)
        with torch.no_grad():
            value = float(reward(latents.detach())[0])
        if best is None or value > best.reward:
            best = Chosen(latents.detach(), value, number + 1)
        if number == ascents:
            break
        optimizer.zero_grad()
        length = noise.norm()
        density = (noise.numel() - 1) * length.log() - length.square() / 2
        (differentiable(latents).sum() + regulariser * density).backward()
        torch.nn.utils.clip_grad_norm_(noise, clip)
        optimizer.step()
    assert best is not None
    return best._replace(images=ascents + 1)


def _argmax(reward_N: Tensor) -> int:
    """The best; an image without a score is the last choice."""
    return int(reward_N.nan_to_num(nan=-math.inf, neginf=-math.inf).argmax())


def _best(latents_NCHW: Tensor, reward_N: Tensor, images: int) -> Chosen:
    place = _argmax(reward_N)
    return Chosen(latents_NCHW[place : place + 1], float(reward_N[place]), images)

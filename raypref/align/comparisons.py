"""What an objective compares: a preferred and a dispreferred noisy state, with their targets.

Every random number of a sample comes from its own generator, seeded by (seed, stage, step, sample
index), so neither the number of workers nor the split of a batch changes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raypref.align.cache import PairData
from raypref.align.objectives import (
    Errors,
    Metrics,
    denoising_error,
    dpo_loss,
    dpo_sft_loss,
    dro_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    sft_loss,
)
from raypref.align.rollout import policy_states
from raypref.align.stage import StageConfig
from raypref.diffusion import lora
from raypref.diffusion.backbone import Denoiser
from raypref.diffusion.samplers import jittered_grid

LEARNER, REFERENCE, POLICY = "learner", "ref", "policy"


class Sample(NamedTuple):
    """One entry of a batch: which pair, and the source of its randomness."""

    pair: int
    generator: torch.Generator


class Comparison(NamedTuple):
    """B pairs of noisy states at the same timestep with the same caption.

    Where nothing is dispreferred the loser and its target are empty, [0, C, H, W].
    """

    winner_BCHW: Tensor
    loser_BCHW: Tensor
    winner_target_BCHW: Tensor
    loser_target_BCHW: Tensor
    timesteps_B: Tensor
    prompts_BLD: Tensor


def compare_to_policy(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """Diffusion-DRO: the photograph against the policy's own trajectory (method: section 2).

    The loser is the policy's state at one uniformly drawn step of a DPM-Solver++ rollout at CFG 1,
    its target the policy's own prediction there. The winner is the photograph at the same
    timestep, with noise of its own.
    """
    n = stage.rollout_steps
    pairs, flips, dropped, draws = [], [], [], []
    for pair, generator in samples:
        flip, drop = _augment(stage, generator)
        offset = torch.randint(denoiser.train_steps // n, (), generator=generator)
        stop = torch.randint(n, (), generator=generator)
        pairs.append(pair)
        flips.append(flip)
        dropped.append(drop)
        draws.append((offset, stop, _normal(data, generator, count=3)))
    offsets_B, stop_B, noise = (torch.stack(column) for column in zip(*draws, strict=True))
    latent_noise, noise_BCHW, start_BCHW = noise.to(data.moments).unbind(1)

    prompts_BLD = data.prompts(pairs, dropped)
    lora.activate(denoiser.module, POLICY)
    policy = policy_states(
        denoiser.predict,
        start_BCHW,
        prompts_BLD,
        grid_nB=jittered_grid(steps=n, train_steps=denoiser.train_steps, offsets_B=offsets_B),
        stop_B=stop_B,
        alphas_cumprod_T=denoiser.alphas_cumprod_T,
    )
    photo_BCHW = data.latents(pairs, flips, latent_noise, which=0)
    return Comparison(
        winner_BCHW=denoiser.add_noise(photo_BCHW, noise_BCHW, policy.timesteps_B),
        loser_BCHW=policy.x_BCHW,
        winner_target_BCHW=denoiser.target(photo_BCHW, noise_BCHW),
        loser_target_BCHW=policy.eps_BCHW,
        timesteps_B=policy.timesteps_B,
        prompts_BLD=prompts_BLD,
    )


def compare_pair(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """Diffusion-DPO: the photograph against its degraded twin (method: section 3).

    Both share noise, timestep, caption and flip. The released scripts draw the flip per image, so
    half of their pairs face different ways; here it is one draw a pair.
    """
    pairs, flips, dropped, draws = [], [], [], []
    for pair, generator in samples:
        flip, drop = _augment(stage, generator)
        timestep = torch.tensor(denoiser.draw_timestep(generator))
        pairs.append(pair)
        flips.append(flip)
        dropped.append(drop)
        draws.append((timestep, _normal(data, generator, count=3)))
    timesteps_B, noise = (torch.stack(column) for column in zip(*draws, strict=True))
    timesteps_B = timesteps_B.to(data.moments.device)
    photo_noise, twin_noise, noise_BCHW = noise.to(data.moments).unbind(1)
    photo_BCHW = data.latents(pairs, flips, photo_noise, which=0)
    twin_BCHW = data.latents(pairs, flips, twin_noise, which=1)
    return Comparison(
        winner_BCHW=denoiser.add_noise(photo_BCHW, noise_BCHW, timesteps_B),
        loser_BCHW=denoiser.add_noise(twin_BCHW, noise_BCHW, timesteps_B),
        winner_target_BCHW=denoiser.target(photo_BCHW, noise_BCHW),
        loser_target_BCHW=denoiser.target(twin_BCHW, noise_BCHW),
        timesteps_B=timesteps_B,
        prompts_BLD=data.prompts(pairs, dropped),
    )


def compare_photograph(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """Supervised fine-tuning: the photograph as in `compare_pair`, and no loser."""
    pair = compare_pair(denoiser, data, stage, samples)
    return pair._replace(
        loser_BCHW=pair.loser_BCHW[:0], loser_target_BCHW=pair.loser_target_BCHW[:0]
    )


def measure(denoiser: Denoiser, comparison: Comparison) -> Errors:
    """The four errors; gradients flow through the learner's two.

    Winner and loser go through the network as one batch. The reference comes first: adapters must
    not be switched between the learner's forward and its backward.
    """
    x = torch.cat([comparison.winner_BCHW, comparison.loser_BCHW])
    target = torch.cat([comparison.winner_target_BCHW, comparison.loser_target_BCHW])
    sides = len(comparison.winner_BCHW), len(comparison.loser_BCHW)
    timesteps = torch.cat([comparison.timesteps_B[:side] for side in sides])
    prompts = torch.cat([comparison.prompts_BLD[:side] for side in sides])
    lora.activate(denoiser.module, REFERENCE)
    with torch.no_grad():
        reference = denoising_error(denoiser.predict(x, timesteps, prompts), target)
    lora.activate(denoiser.module, LEARNER, train=True)
    learner = denoising_error(denoiser.predict(x, timesteps, prompts), target)
    return Errors(*learner.split(sides), *reference.split(sides))


class Objective(NamedTuple):
    """A way to build comparisons and the loss on their errors."""

    compare: Callable[[Denoiser, PairData, StageConfig, Sequence[Sample]], Comparison]
    loss: Callable[[Errors, StageConfig], tuple[Tensor, Metrics]]


OBJECTIVES = {
    "dro": Objective(compare_to_policy, lambda errors, s: dro_loss(errors, margin=s.margin)),
    "dpo": Objective(compare_pair, lambda errors, s: dpo_loss(errors, beta=s.beta)),
    "ipo": Objective(compare_pair, lambda errors, s: ipo_loss(errors, beta=s.beta)),
    "hinge": Objective(compare_pair, lambda errors, s: hinge_loss(errors, beta=s.beta)),
    "kto": Objective(compare_pair, lambda errors, s: kto_loss(errors, beta=s.beta)),
    "dpo_sft": Objective(
        compare_pair, lambda errors, s: dpo_sft_loss(errors, beta=s.beta, weight=s.sft_weight)
    ),
    "sft": Objective(compare_photograph, lambda errors, s: sft_loss(errors)),
}


def _augment(stage: StageConfig, generator: torch.Generator) -> tuple[bool, bool]:
    """Whether to mirror the sample and whether to drop its caption."""
    flip, drop = torch.rand(2, generator=generator).tolist()
    return flip < stage.flip, drop < stage.caption_dropout


def _normal(data: PairData, generator: torch.Generator, *, count: int) -> Tensor:
    """Standard normal draws of latent shape, [count, C, h, w], on the CPU: one result anywhere."""
    return torch.randn((count, *data.moments.shape[-3:]), generator=generator)

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
from raypref.align.rollout import policy_images, policy_states
from raypref.align.stage import StageConfig
from raypref.diffusion import lora
from raypref.diffusion.families.base import Denoiser
from raypref.diffusion.families.conditioning import Conditioning, twice
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
    loser_target_BCHW: Tensor | None  # None: whatever the learner itself predicts there
    timesteps_B: Tensor
    prompts: Conditioning

    def split(self, size: int) -> list[Comparison]:
        """The same in parts of at most so many."""
        starts = range(0, len(self.timesteps_B), size)
        return [self._part(slice(start, start + size)) for start in starts]

    def _part(self, some: slice) -> Comparison:
        return Comparison._make(None if field is None else field[some] for field in self)


def compare_to_policy(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """Diffusion-DRO: the photograph against what the policy makes of its caption."""
    compare = {"trajectory": _compare_to_trajectory, "final": _compare_to_image}
    return compare[stage.policy_state](denoiser, data, stage, samples)


def _compare_to_trajectory(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """The photograph against a state on the policy's way, as released for SD-1.5.

    The loser is the policy's state at one uniformly drawn step of a rollout at CFG 1, its target
    the policy's own prediction there. The winner is the photograph at the same timestep, with noise
    of its own.
    """
    n, timesteps_T = stage.rollout_steps, denoiser.training_timesteps(data.latent_shape)
    train_steps = len(timesteps_T)
    pairs, flips, prompts, (offsets_B, stop_B), noises = _draw(
        denoiser,
        data,
        stage,
        samples,
        lambda generator: torch.randint(train_steps // n, (), generator=generator),
        lambda generator: torch.randint(n, (), generator=generator),
    )
    latent_noise, noise_BCHW, start_BCHW = noises
    places_nB = jittered_grid(steps=n, train_steps=train_steps, offsets_B=offsets_B)
    lora.activate(denoiser.module, POLICY)
    policy = policy_states(
        denoiser.predict,
        denoiser.solver,
        start_BCHW,
        prompts,
        grid_nB=timesteps_T[places_nB],
        stop_B=stop_B,
    )
    photo_BCHW = data.latents(pairs, flips, latent_noise, which=0)
    return Comparison(
        winner_BCHW=denoiser.add_noise(photo_BCHW, noise_BCHW, policy.timesteps_B),
        loser_BCHW=policy.x_BCHW,
        winner_target_BCHW=denoiser.target(photo_BCHW, noise_BCHW),
        loser_target_BCHW=policy.prediction_BCHW,
        timesteps_B=policy.timesteps_B,
        prompts=prompts,
    )


def _compare_to_image(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """The photograph against the policy's finished image, as released for SD-3.5-M.

    The image is drawn at CFG 1 on the pipeline's own grid. Both are noised with one noise to one
    timestep of the training distribution. The loser's target is the prediction of the learner as it
    is now, whatever `policy_lag` says: its error is 0 and so is its gradient, so the policy's image
    only gates the hinge, by how far learner and reference differ on it. The released code draws
    the image with the learner too, which is `policy_lag=1`.
    """
    pairs, flips, prompts, (timesteps_B,), noises = _draw(
        denoiser, data, stage, samples, lambda g: denoiser.draw_timestep(g, data.latent_shape)
    )
    timesteps_B = timesteps_B.to(denoiser.device)
    latent_noise, noise_BCHW, start_BCHW = noises
    grid_n = denoiser.sampling_timesteps(stage.rollout_steps, data.latent_shape)
    lora.activate(denoiser.module, POLICY)
    image_BCHW = policy_images(
        denoiser.predict,
        denoiser.solver,
        start_BCHW,
        prompts,
        grid_nB=grid_n[:, None].expand(-1, len(samples)),
    )
    photo_BCHW = data.latents(pairs, flips, latent_noise, which=0)
    return Comparison(
        winner_BCHW=denoiser.add_noise(photo_BCHW, noise_BCHW, timesteps_B),
        loser_BCHW=denoiser.add_noise(image_BCHW, noise_BCHW, timesteps_B),
        winner_target_BCHW=denoiser.target(photo_BCHW, noise_BCHW),
        loser_target_BCHW=None,
        timesteps_B=timesteps_B,
        prompts=prompts,
    )


def compare_pair(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """Diffusion-DPO: the photograph against its degraded twin (paper, section 3.3).

    Both share noise, timestep, caption and flip. The released scripts draw the flip per image, so
    half of their pairs face different ways; here it is one draw a pair.
    """
    pairs, flips, prompts, (timesteps_B,), noises = _draw(
        denoiser, data, stage, samples, lambda g: denoiser.draw_timestep(g, data.latent_shape)
    )
    timesteps_B = timesteps_B.to(denoiser.device)
    photo_noise, twin_noise, noise_BCHW = noises
    photo_BCHW = data.latents(pairs, flips, photo_noise, which=0)
    twin_BCHW = data.latents(pairs, flips, twin_noise, which=1)
    return Comparison(
        winner_BCHW=denoiser.add_noise(photo_BCHW, noise_BCHW, timesteps_B),
        loser_BCHW=denoiser.add_noise(twin_BCHW, noise_BCHW, timesteps_B),
        winner_target_BCHW=denoiser.target(photo_BCHW, noise_BCHW),
        loser_target_BCHW=denoiser.target(twin_BCHW, noise_BCHW),
        timesteps_B=timesteps_B,
        prompts=prompts,
    )


def compare_photograph(
    denoiser: Denoiser, data: PairData, stage: StageConfig, samples: Sequence[Sample]
) -> Comparison:
    """Supervised fine-tuning: the photograph as in `compare_pair`, and no loser."""
    pair = compare_pair(denoiser, data, stage, samples)
    none_BCHW = pair.loser_BCHW[:0]
    return pair._replace(loser_BCHW=none_BCHW, loser_target_BCHW=none_BCHW)


def measure(denoiser: Denoiser, comparison: Comparison) -> Errors:
    """The four errors; gradients flow through the learner's two.

    Winner and loser go through the network as one batch, but where the loser's target is the
    learner's own prediction: its error is 0 without a gradient, so nothing is kept for one. The
    reference comes first: adapters must not be switched between the learner's forward and its
    backward.
    """
    winner, loser, winner_target, loser_target, timesteps_B, prompts = comparison
    x = torch.cat([winner, loser])
    sides = len(winner), len(loser)  # there are as many losers, or none
    timesteps, both = timesteps_B.repeat(2)[: len(x)], twice(prompts)[: len(x)]
    lora.activate(denoiser.module, REFERENCE)
    with torch.no_grad():
        reference = denoiser.predict(x, timesteps, both)
    lora.activate(denoiser.module, LEARNER, train=True)
    if loser_target is None:
        with torch.no_grad():
            loser_target = denoiser.predict(loser, timesteps_B, prompts)
        learner = torch.cat([denoiser.predict(winner, timesteps_B, prompts), loser_target])
    else:
        learner = denoiser.predict(x, timesteps, both)
    target = torch.cat([winner_target, loser_target])
    of_learner, of_reference = denoising_error(learner, target), denoising_error(reference, target)
    return Errors(*of_learner.split(sides), *of_reference.split(sides))


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


class _Draws(NamedTuple):
    """The random part of B samples."""

    pairs: list[int]
    flips: list[bool]
    prompts: Conditioning
    numbers: list[Tensor]  # each [B], on the CPU
    noises: tuple[Tensor, ...]  # three standard normals of the latents' shape


def _draw(
    denoiser: Denoiser,
    data: PairData,
    stage: StageConfig,
    samples: Sequence[Sample],
    *numbers: Callable[[torch.Generator], Tensor],
) -> _Draws:
    """All that is random about samples, drawn on the CPU: one result anywhere.

    Of each sample's generator, in this order: two uniforms, for the flip and for dropping the
    caption; the scalars that `numbers` draw; three latents of noise.
    """
    flips, dropped, drawn, noises = [], [], [], []
    for _, generator in samples:
        flip, drop = torch.rand(2, generator=generator).tolist()
        flips.append(flip < stage.flip)
        dropped.append(drop < stage.caption_dropout)
        drawn.append([draw(generator) for draw in numbers])
        noises.append(torch.randn((3, *data.latent_shape), generator=generator))
    pairs = [sample.pair for sample in samples]
    where = denoiser.device, torch.promote_types(denoiser.dtype, torch.float32)
    return _Draws(
        pairs,
        flips,
        data.prompts(pairs, dropped, flips).to(*where),
        [torch.stack(column) for column in zip(*drawn, strict=True)],
        torch.stack(noises, dim=1).to(*where).unbind(),
    )

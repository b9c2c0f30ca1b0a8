"""The samples of an optimizer step: noisy states with their targets, from pairs or the policy.

Every random number of a sample comes from its own generator, seeded by (seed, training, step,
sample index), so neither the number of workers nor the split of a batch changes a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from raypref.align import rollout
from raypref.align.config import TrainingConfig
from raypref.align.noising import noised_side
from raypref.align.pair_data import PairData
from raypref.align.residuals import POLICY, Draw, Samples, Side
from raypref.align.rollout_config import RolloutConfig
from raypref.models import adapters
from raypref.models.families.base import Denoiser, Shape
from raypref.models.families.conditioning import Conditioning, twice
from raypref.models.solvers import jittered_grid


def stored_pairs(
    denoiser: Denoiser, data: PairData, training: TrainingConfig, draws: Sequence[Draw]
) -> Samples:
    """Chosen and rejected image of a pair (paper, section 3.3).

    Both share noise, timestep, caption and, unless `flip_per` is `image`, the flip.
    """
    return _stored(denoiser, data, training, draws, sides=2)


def chosen_images(
    denoiser: Denoiser, data: PairData, training: TrainingConfig, draws: Sequence[Draw]
) -> Samples:
    """The chosen image as in `stored_pairs`, alone; of single images, the one there is."""
    return _stored(denoiser, data, training, draws, sides=1)


def _stored(
    denoiser: Denoiser,
    data: PairData,
    training: TrainingConfig,
    draws: Sequence[Draw],
    *,
    sides: int,
) -> Samples:
    drawn = _draw(denoiser, data, training, draws, _timestep(denoiser, data, draws))
    (timesteps_B,) = drawn.numbers
    timesteps_B = timesteps_B.to(denoiser.device)
    *own_noises, noise_BCHW = drawn.noises
    flips = [drawn.flips] * sides
    if training.flips_apart:  # drawn after all that samples of one flip have
        flips[1] = [torch.rand((), generator=g).item() < training.flip for _, g in draws]
    found = []
    for which in range(sides):
        latents_BCHW = data.latents(drawn.pairs, flips[which], own_noises[which], which=which)
        found.append(noised_side(denoiser, latents_BCHW, noise_BCHW, timesteps_B))
    return Samples(
        tuple(found), timesteps_B, drawn.prompts, data.facts_of(drawn.pairs, found[-1].x_BCHW)
    )


def policy_trajectories(
    denoiser: Denoiser, data: PairData, training: TrainingConfig, draws: Sequence[Draw]
) -> Samples:
    """Diffusion-DRO: the photograph against a state of the policy's trajectory (SD-1.5's release).

    The rejected side is the policy's state at one uniformly drawn step of a rollout at CFG 1, its
    target the policy's own prediction there. The chosen side is the photograph at the same
    timestep, with noise of its own. With `rollout_stops` = 2 a draw gives two samples: two steps of
    one trajectory, each with noise of its own; all first ones come before the second ones.
    """
    n = cast("RolloutConfig", training).rollout_steps
    timesteps_T = denoiser.training_timesteps(_shape(data, draws))
    train_steps = len(timesteps_T)
    drawn = _draw(
        denoiser,
        data,
        training,
        draws,
        lambda generator: torch.randint(train_steps // n, (), generator=generator),
        lambda generator: torch.randint(n, (), generator=generator),
    )
    offsets_B, stop_B = drawn.numbers
    latent_noise, noise_BCHW, start_BCHW = drawn.noises
    places_nB = jittered_grid(steps=n, train_steps=train_steps, offsets_B=offsets_B)
    stops, pairs, flips, prompts = stop_B[None], drawn.pairs, drawn.flips, drawn.prompts
    if training.samples_per_draw == 2:
        second_B, latent_noise, noise_BCHW = _second(draws, drawn, n)
        stops = torch.stack([stop_B, second_B])
        pairs, flips, prompts = pairs * 2, flips * 2, twice(prompts)
    adapters.activate(denoiser.module, POLICY)
    policy = rollout.policy_states(
        denoiser.predict,
        denoiser.solver,
        start_BCHW,
        drawn.prompts,
        grid_nB=timesteps_T[places_nB],
        stops_SB=stops,
    )
    photo_BCHW = data.latents(pairs, flips, latent_noise, which=0)
    chosen = noised_side(denoiser, photo_BCHW, noise_BCHW, policy.timesteps_B)
    rejected = Side(policy.x_BCHW, policy.prediction_BCHW)
    facts = data.facts_of(pairs, chosen.x_BCHW)
    return Samples((chosen, rejected), policy.timesteps_B, prompts, facts)


def _second(draws: Sequence[Draw], drawn: _Drawn, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the second sample of each draw has of its own, drawn after all that the first has.

    Returns:
        Its stop, [B], uniform over the steps that are not the first sample's; and latent noise and
        noise of both samples, [2 B, C, h, w].
    """
    latent_noise, noise_BCHW, _ = drawn.noises
    first_B, shape = drawn.numbers[1], latent_noise.shape[1:]
    others, noises = [], []
    for _, generator in draws:
        others.append(torch.randint(n - 1, (), generator=generator))
        noises.append(torch.randn((2, *shape), generator=generator))
    other_B = torch.stack(others)
    own = torch.stack(noises, dim=1).to(latent_noise)
    both = [torch.cat(each) for each in zip((latent_noise, noise_BCHW), own, strict=True)]
    return other_B + (other_B >= first_B), both[0], both[1]


def policy_images(
    denoiser: Denoiser, data: PairData, training: TrainingConfig, draws: Sequence[Draw]
) -> Samples:
    """Diffusion-DRO: the photograph against the policy's finished image, as released for SD-3.5-M.

    The image is drawn at CFG 1 on the pipeline's own grid. Both are noised with one noise to one
    timestep of the training distribution. The rejected side's target is the prediction of the
    learner as it is now, whatever `policy_lag` says: its error is 0 and so is its gradient, so the
    policy's image only gates the hinge, by how far learner and reference differ on it. The released
    code draws the image with the learner too, which is `policy_lag=1`.
    """
    return _policy_images(denoiser, data, training, draws, true_target=False)


def self_play(
    denoiser: Denoiser, data: PairData, training: TrainingConfig, draws: Sequence[Draw]
) -> Samples:
    """SPIN-Diffusion: as `policy_images`, the policy's image with its true target."""
    return _policy_images(denoiser, data, training, draws, true_target=True)


def _policy_images(
    denoiser: Denoiser,
    data: PairData,
    training: TrainingConfig,
    draws: Sequence[Draw],
    *,
    true_target: bool,
) -> Samples:
    drawn = _draw(denoiser, data, training, draws, _timestep(denoiser, data, draws))
    (timesteps_B,) = drawn.numbers
    timesteps_B = timesteps_B.to(denoiser.device)
    latent_noise, noise_BCHW, start_BCHW = drawn.noises
    grid_n = denoiser.sampling_timesteps(
        cast("RolloutConfig", training).rollout_steps, _shape(data, draws)
    )
    adapters.activate(denoiser.module, POLICY)
    image_BCHW = rollout.finished_images(
        denoiser.predict,
        denoiser.solver,
        start_BCHW,
        drawn.prompts,
        grid_nB=grid_n[:, None].expand(-1, len(draws)),
    )
    photo_BCHW = data.latents(drawn.pairs, drawn.flips, latent_noise, which=0)
    chosen = noised_side(denoiser, photo_BCHW, noise_BCHW, timesteps_B)
    rejected = noised_side(denoiser, image_BCHW, noise_BCHW, timesteps_B)
    if not true_target:
        rejected = rejected._replace(target_BCHW=None)
    facts = data.facts_of(drawn.pairs, chosen.x_BCHW)
    return Samples((chosen, rejected), timesteps_B, drawn.prompts, facts)


def _shape(data: PairData, draws: Sequence[Draw]) -> Shape:
    """Of the latents of draws, which are of one size."""
    return data.shape_of([draw.pair for draw in draws])


def _timestep(
    denoiser: Denoiser, data: PairData, draws: Sequence[Draw]
) -> Callable[[torch.Generator], Tensor]:
    """Draws a timestep of the training distribution for latents of the draws' size."""
    shape = _shape(data, draws)
    return lambda generator: denoiser.draw_timestep(generator, shape)


class _Drawn(NamedTuple):
    """The random part of B samples."""

    pairs: list[int]
    flips: list[bool]
    prompts: Conditioning
    numbers: list[Tensor]  # each [B], on the CPU
    noises: tuple[Tensor, ...]  # three standard normals of the latents' shape


def _draw(
    denoiser: Denoiser,
    data: PairData,
    training: TrainingConfig,
    draws: Sequence[Draw],
    *numbers: Callable[[torch.Generator], Tensor],
) -> _Drawn:
    """All that is random about samples of one size, drawn on the CPU: one result anywhere.

    Of each sample's generator, in this order: two uniforms, for the flip and for dropping the
    caption; the scalars that `numbers` draw; three latents of noise. The order is frozen.
    """
    flips, dropped, drawn, noises = [], [], [], []
    shape = _shape(data, draws)
    for _, generator in draws:
        flip, drop = torch.rand(2, generator=generator).tolist()
        flips.append(flip < training.flip)
        dropped.append(drop < training.caption_dropout)
        drawn.append([draw(generator) for draw in numbers])
        noises.append(torch.randn((3, *shape), generator=generator))
    pairs = [draw.pair for draw in draws]
    where = denoiser.device, torch.promote_types(denoiser.dtype, torch.float32)
    return _Drawn(
        pairs,
        flips,
        data.prompts(pairs, dropped, flips).to(denoiser.device, denoiser.dtype),
        [torch.stack(column) for column in zip(*drawn, strict=True)],
        torch.stack(noises, dim=1).to(*where).unbind(),
    )

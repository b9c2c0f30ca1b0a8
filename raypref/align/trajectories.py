"""Rollouts by a stochastic solver, and samples of their steps.

The likelihood of a step is a denoising error (`models/stochastic.py`): so a step is a sample like
any other, its target being what the policy would have had to predict to make it likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raypref.align.blocks import RolledOut, RolloutBlock
from raypref.align.paths import Path
from raypref.align.residuals import Samples, Side
from raypref.align.rollout import Predict
from raypref.models.families.conditioning import Conditioning
from raypref.models.stochastic import StochasticSolver


@torch.no_grad()
def stochastic_images(
    predict: Predict,
    solver: StochasticSolver,
    start_NCHW: Tensor,
    prompts: Conditioning,
    generators: Sequence[torch.Generator],
    *,
    grid_nN: Tensor,
) -> RolledOut:
    """Sample to the end and keep the steps that have a likelihood.

    Of each image's generator: one latent of noise per step that has some, first to last. The order
    is frozen.

    Args:
        predict: (x, timesteps, prompts) -> prediction, with the policy's adapter active.
        solver: on that grid.
        start_NCHW: Gaussian noise.
        prompts: N of them.
        generators: one per image.
        grid_nN: timesteps, descending, one column per image, on the CPU.

    Returns:
        Clean latents and the path to them.
    """
    x, shape = start_NCHW, start_NCHW.shape[1:]
    timesteps_nN = grid_nN.to(x.device)
    kept = []
    for i, noisy in enumerate(solver.noisy_n):
        prediction = predict(x, timesteps_nN[i], prompts).to(x.dtype)
        noise_NCHW = torch.zeros_like(x)
        if noisy:
            drawn = [torch.randn(shape, generator=generator) for generator in generators]
            noise_NCHW = torch.stack(drawn).to(x)
        step = solver.step(i, x, prediction, noise_NCHW)
        if noisy:
            known = x, step.target_BCHW, prediction, timesteps_nN[i], step.kappa_B, step.std_B
            kept.append(known)
        x = step.x_BCHW
    return RolledOut(x, Path(*(torch.stack(each) for each in zip(*kept, strict=True))))


def drawn_steps(generators: Sequence[torch.Generator], count: int, *, of: int) -> Tensor:
    """Which steps are trained on: per generator so many different ones, uniformly, [count, G]."""
    return torch.stack([torch.randperm(of, generator=g)[:count] for g in generators], dim=1)


def path_samples(
    block: RolloutBlock,
    sides: Sequence[Sequence[int]],
    steps_KN: Tensor,
    *,
    guidance: float,
) -> Samples:
    """Some steps of images of a block as samples, with `kappa` and `std` among their facts.

    Args:
        block: images with their paths.
        sides: per side N positions in the block. The sides of a sample are at one step; prompts and
            facts are those of the first side.
        steps_KN: K steps of each image, positions in the path.
        guidance: of the rollout, and so of the predictions that are compared.

    Returns:
        K * N samples: the first step of every image, then the second, ...
    """
    path = block.path
    assert path is not None, "an objective on paths draws them itself"
    at = steps_KN.flatten().to(path.kappa_TN.device)
    images = [torch.tensor([*own], device=at.device).repeat(len(steps_KN)) for own in sides]
    found = tuple(
        Side(path.states_TNCHW[at, n], path.targets_TNCHW[at, n], path.policy_TNCHW[at, n])
        for n in images
    )
    first = [*sides[0]] * len(steps_KN)
    facts = block.facts_of(first, found[0].x_BCHW)
    facts |= {"kappa": path.kappa_TN[at, images[0]], "std": path.std_TN[at, images[0]]}
    return Samples(
        found,
        path.timesteps_TN[at, images[0]],
        block.prompts[first],
        facts,
        None if guidance == 1 else block.unconditional[first],
        guidance,
    )

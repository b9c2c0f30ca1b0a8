"""The policy's own denoising: its state at one step, or its finished image.

Diffusion-DRO asks for the policy's state at one uniformly drawn step of an n-step trajectory. The
steps after it are never looked at, so they are not run: the distribution is the same, with (n+1)/2
forwards per sample instead of n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raypref.models.families.conditioning import Conditioning
from raypref.models.solvers import Solver

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]
MakeSolver = Callable[[Tensor], Solver]  # of a grid of timesteps, one column per sample


class PolicyState(NamedTuple):
    """A point on the policy's trajectory."""

    x_BCHW: Tensor  # the latent before the step
    prediction_BCHW: Tensor  # what the policy predicts there
    timesteps_B: Tensor


@torch.no_grad()
def policy_states(
    predict: Predict,
    make_solver: MakeSolver,
    start_BCHW: Tensor,
    prompts: Conditioning,
    *,
    grid_nB: Tensor,
    stop_B: Tensor,
) -> PolicyState:
    """Sample at CFG 1 and return each sample's state at its own stopping step.

    Args:
        predict: (x, timesteps, prompts) -> prediction, with the policy's adapter active.
        make_solver: the denoiser's solver.
        start_BCHW: Gaussian noise.
        prompts: the captions.
        grid_nB: timesteps, descending, one column per sample, on the CPU.
        stop_B: index of the step wanted, 0 .. n-1, on the CPU.
    """
    device = start_BCHW.device
    # Sorted by stopping step, the samples still running are always a suffix of the batch.
    order = torch.argsort(stop_B, stable=True)
    sorted_nB = grid_nB[:, order]
    solver, timesteps_nB = make_solver(sorted_nB), sorted_nB.to(device)
    there = order.to(device)
    x, prompts = start_BCHW[there], prompts[there]
    last_x0: Tensor | None = None
    states, predictions, first = [], [], 0
    for i, stopping in enumerate(torch.bincount(stop_B).tolist()):
        prediction = predict(x, timesteps_nB[i, first:], prompts[first:]).to(x.dtype)
        states.append(x[:stopping])
        predictions.append(prediction[:stopping])
        first += stopping
        if first < len(order):
            last = None if last_x0 is None else last_x0[stopping:]
            x, last_x0 = solver.step(i, x[stopping:], prediction[stopping:], last, first=first)
    back = torch.argsort(order).to(device)
    timesteps_B = grid_nB.gather(0, stop_B[None])[0]
    return PolicyState(
        torch.cat(states)[back], torch.cat(predictions)[back], timesteps_B.to(device)
    )


@torch.no_grad()
def finished_images(
    predict: Predict,
    make_solver: MakeSolver,
    start_BCHW: Tensor,
    prompts: Conditioning,
    *,
    grid_nB: Tensor,
) -> Tensor:
    """Sample at CFG 1 to the end: the policy's clean latents, [B, C, H, W].

    Args:
        predict: (x, timesteps, prompts) -> prediction, with the policy's adapter active.
        make_solver: the denoiser's solver.
        start_BCHW: Gaussian noise.
        prompts: the captions.
        grid_nB: timesteps, descending, one column per sample, on the CPU.
    """
    solver, timesteps_nB = make_solver(grid_nB), grid_nB.to(start_BCHW.device)
    x = start_BCHW
    last_x0: Tensor | None = None
    for i, timesteps_B in enumerate(timesteps_nB):
        prediction = predict(x, timesteps_B, prompts).to(x.dtype)
        x, last_x0 = solver.step(i, x, prediction, last_x0, first=0)
    return x

"""The policy's own denoising: its state at one step or two, or its finished image.

Diffusion-DRO asks for the policy's state at one uniformly drawn step of an n-step trajectory. The
steps after it are never looked at, so they are not run: the distribution is the same, with (n+1)/2
forwards per sample instead of n. Two states of one trajectory, for two samples, take 2(n+1)/3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raypref.core.device import to_device
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
    stops_SB: Tensor,
) -> PolicyState:
    """Sample at CFG 1 and return each trajectory's states at its own stopping steps.

    Args:
        predict: (x, timesteps, prompts) -> prediction, with the policy's adapter active.
        make_solver: the denoiser's solver.
        start_BCHW: Gaussian noise.
        prompts: the captions.
        grid_nB: timesteps, descending, one column per trajectory, on the CPU.
        stops_SB: indices of the S steps wanted, 0 .. n-1, on the CPU.

    Returns:
        S * B states: all trajectories' first stops, then their second ones.
    """
    device = start_BCHW.device
    last_B = stops_SB.max(0).values
    # Sorted by last stop, the trajectories still running are always a suffix of the batch.
    order = torch.argsort(last_B, stable=True)
    sorted_nB, stops_SB = grid_nB[:, order], stops_SB[:, order]
    solver, timesteps_nB = make_solver(sorted_nB), sorted_nB.to(device)
    there = order.to(device)
    x, prompts = start_BCHW[there], prompts[there]
    last_x0: Tensor | None = None
    states, predictions, first = [], [], 0
    found: list[Tensor] = []  # positions in the result, in the order of what is appended
    for i, ending in enumerate(torch.bincount(last_B).tolist()):
        prediction = predict(x, timesteps_nB[i, first:], prompts[first:]).to(x.dtype)
        for stop, running_B in enumerate(stops_SB[:, first:] == i):
            if not running_B.any():
                continue
            which = running_B.nonzero()[:, 0]
            # Where every trajectory has one stop, those that reach it are the front of the batch.
            taken = slice(ending) if len(stops_SB) == 1 else to_device(which, device, which.dtype)
            states.append(x[taken])
            predictions.append(prediction[taken])
            found.append(stop * len(order) + order[first + which])
        first += ending
        if first < len(order):
            last = None if last_x0 is None else last_x0[ending:]
            x, last_x0 = solver.step(i, x[ending:], prediction[ending:], last, first=first)
    back = torch.argsort(torch.cat(found)).to(device)
    timesteps_SB = sorted_nB.gather(0, stops_SB)[:, torch.argsort(order)]
    return PolicyState(
        torch.cat(states)[back], torch.cat(predictions)[back], timesteps_SB.flatten().to(device)
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

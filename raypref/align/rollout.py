"""Where the policy is after part of its own denoising: a rollout stopped at the step drawn for it.

Diffusion-DRO asks for the policy's state at one uniformly drawn step of an n-step trajectory. The
steps after it are never looked at, so they are not run: the distribution is the same and (n+1)/2
forwards a sample do the work of n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from raypref.diffusion.samplers import DPMSolverPP2M

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


class PolicyState(NamedTuple):
    """A point on the policy's trajectory."""

    x_BCHW: Tensor  # the latent before the step
    eps_BCHW: Tensor  # what the policy predicts there
    timesteps_B: Tensor


@torch.no_grad()
def policy_states(
    predict: Predict,
    start_BCHW: Tensor,
    prompts_BLD: Tensor,
    *,
    grid_nB: Tensor,
    stop_B: Tensor,
    alphas_cumprod_T: Tensor,
) -> PolicyState:
    """Run DPM-Solver++ at CFG 1 and return each sample's state at its own stopping step.

    Args:
        predict: (x, timesteps, prompts) -> epsilon, with the policy's adapter active.
        start_BCHW: Gaussian noise.
        prompts_BLD: prompt embeddings.
        grid_nB: timesteps, descending, a column a sample.
        stop_B: index of the step wanted, 0 .. n-1.
        alphas_cumprod_T: the training schedule.
    """
    solver = DPMSolverPP2M(alphas_cumprod_T, grid_nB)
    device = start_BCHW.device
    stop_B = stop_B.cpu()
    x_final, eps_final = torch.empty_like(start_BCHW), torch.empty_like(start_BCHW)
    # Sorted by stopping step, the samples still running are always a suffix of the batch.
    running = torch.argsort(stop_B)
    x, last_x0 = start_BCHW[running.to(device)], None
    for i in range(int(stop_B.max()) + 1):
        here = running.to(device)
        eps = predict(x, grid_nB[i, running].to(device), prompts_BLD[here]).to(x.dtype)
        stopped = int((stop_B[running] == i).sum())
        x_final[here[:stopped]] = x[:stopped]
        eps_final[here[:stopped]] = eps[:stopped]
        running = running[stopped:]
        if not len(running):
            break
        last = None if last_x0 is None else last_x0[stopped:]
        x, last_x0 = solver.step(i, x[stopped:], eps[stopped:], last, running)
    timesteps = grid_nB.gather(0, stop_B[None])[0]
    return PolicyState(x_final, eps_final, timesteps.to(device))

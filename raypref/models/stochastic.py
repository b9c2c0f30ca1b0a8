"""Solvers with noise in their steps, so that every step has a likelihood.

A step is x' = A x + B prediction + std noise. Its log-likelihood per dimension is then
-kappa (prediction - target)^2 and a constant, with target = (x' - A x) / B and
kappa = B^2 / (2 std^2): a denoising error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from raypref.models.solvers import Factors, ddim_factors


class StochasticStep(NamedTuple):
    """What a step gives, for B samples."""

    x_BCHW: Tensor  # after the step
    target_BCHW: Tensor  # the prediction of which x is the likeliest outcome
    kappa_B: Tensor  # 0 where the step has no noise, and so no likelihood
    std_B: Tensor


class StochasticSolver:
    """From noise to an image in n steps, each sample on a grid of its own.

    Args:
        keeps_nB: A, float64.
        takes_nB: B, float64, nowhere 0.
        std_nB: of the noise, float64; 0: the step has none.
    """

    def __init__(self, keeps_nB: Tensor, takes_nB: Tensor, std_nB: Tensor) -> None:
        noisy_nB = std_nB > 0
        spread_nB = std_nB / takes_nB
        kappa_nB = torch.where(noisy_nB, 0.5 / spread_nB.square(), 0.0)
        self.noisy_n: list[bool] = noisy_nB.all(1).tolist()  # steps that have a likelihood
        self._factors = Factors(keeps_nB, takes_nB, std_nB, spread_nB, kappa_nB)

    def step(
        self, i: int, x_BCHW: Tensor, prediction_BCHW: Tensor, noise_BCHW: Tensor
    ) -> StochasticStep:
        """One step.

        Args:
            i: index of the step, 0 .. n-1.
            x_BCHW: noisy latents.
            prediction_BCHW: what the network says there.
            noise_BCHW: standard normal; it counts for nothing where the step has no noise.
        """
        keeps, takes, std, spread, kappa = self._factors.at(i, x_BCHW, first=0)
        return StochasticStep(
            keeps * x_BCHW + takes * prediction_BCHW + std * noise_BCHW,
            prediction_BCHW + spread * noise_BCHW,
            kappa.flatten(),
            std.flatten(),
        )


def ddim_eta(
    alphas_cumprod_T: Tensor,
    grid_nB: Tensor,
    *,
    eta: float,
    window: range | None = None,
    velocity: bool = False,
) -> StochasticSolver:
    """DDIM with noise (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    As diffusers' `DDIMScheduler(set_alpha_to_one=True)` steps. The last step ends in the clean
    prediction, without noise.

    Args:
        alphas_cumprod_T: the training schedule, [T].
        grid_nB: timesteps per step and sample, descending, [n, B].
        eta: 0 is DDIM, 1 has the noise of the forward process's posterior (DDPM).
        window: steps with noise; all others are DDIM's. None: all but the last.
        velocity: whether the prediction is v, else epsilon.
    """
    abar = alphas_cumprod_T.double().cpu()[grid_nB.cpu()]
    after = torch.cat([abar[1:], torch.ones_like(abar[:1])])
    variance = (1 - after) / (1 - abar) * (1 - abar / after)
    std = eta * variance.clamp(min=0).sqrt() * _within(window, abar)
    return StochasticSolver(*ddim_factors(abar, after, std, velocity=velocity), std)


def flow_sde(
    sigmas_nB: Tensor, *, eta: float, constant: bool = False, window: range | None = None
) -> StochasticSolver:
    """The SDE that has a flow's marginals, by Euler-Maruyama; the prediction is the velocity.

    Its noise per unit of level is eta sqrt(sigma / (1 - sigma)) (Flow-GRPO, arXiv 2505.05470), or
    eta (DanceGRPO, arXiv 2505.07818). At sigma = 1 the first has no bound: as in Flow-GRPO's
    release, 1 - sigma is there that of the second level. The last step, to level 0, has no noise:
    the releases add some, which stays in the image, and leave that step out of training.

    Args:
        sigmas_nB: noise levels per step and sample, descending, float64 [n, B].
        eta: how much noise; 0 is Euler's method on the flow.
        constant: whether the noise is the same at all levels.
        window: steps with noise; all others are Euler's. None: all but the last.
    """
    sigma = sigmas_nB.double().cpu()
    after = torch.cat([sigma[1:], torch.zeros_like(sigma[:1])])
    change = after - sigma
    bounded = torch.where(sigma == 1, after[:1], sigma)
    square = torch.ones_like(sigma) if constant else sigma / (1 - bounded)
    square = eta**2 * square * _within(window, sigma)
    keeps = 1 + square / (2 * sigma) * change
    takes = (1 + square * (1 - sigma) / (2 * sigma)) * change
    return StochasticSolver(keeps, takes, (square * -change).sqrt())


def _within(window: range | None, like_nB: Tensor) -> Tensor:
    """1 for the steps with noise and 0 for all others, [n, 1]; never the last."""
    steps = len(like_nB)
    inside = range(steps) if window is None else window
    values = [float(i in inside and i < steps - 1) for i in range(steps)]
    return like_nB.new_tensor(values)[:, None]

"""Solvers that step every sample of a batch on its own time grid.

Stock schedulers share one grid over the batch. Diffusion-DRO jitters the grid per sample; its
released sampler then gives every sample the first one's sigmas, while here each keeps its own.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from raypref.core.device import to_device


class Solver(Protocol):
    """A way from noise to an image in n steps, each sample on a grid of its own."""

    def step(
        self, i: int, x_BCHW: Tensor, prediction_BCHW: Tensor, last_x0: Tensor | None, *, first: int
    ) -> tuple[Tensor, Tensor]:
        """One step for the samples from column `first` of the grid on.

        Args:
            i: index of the step, 0 .. n-1.
            x_BCHW: their noisy latents at step i.
            prediction_BCHW: what the network says there.
            last_x0: their clean prediction of step i-1; None at step 0.
            first: how many samples at the front of the grid are left out.

        Returns:
            Latents at step i+1 and the clean prediction of step i.
        """


def jittered_grid(*, steps: int, train_steps: int, offsets_B: Tensor) -> Tensor:
    """Descending indices of the training schedule, one column per sample.

    Args:
        steps: solver steps n.
        train_steps: length of the training schedule T, 1000.
        offsets_B: integer jitter per sample, each in [0, T // n).

    Returns:
        Indices of the schedule [n, B], int64: `arange(n) * (T // n)` reversed, plus the offset.
    """
    ratio = train_steps // steps
    grid = torch.arange(steps - 1, -1, -1) * ratio
    return grid[:, None] + offsets_B[None, :].to("cpu")


class DPMSolverPP2M:
    """Second-order multistep DPM-Solver++ (midpoint, epsilon prediction, final sigma 0).

    Lu et al. 2022, algorithm 2. First and last step are first order, as in diffusers'
    `DPMSolverMultistepScheduler(solver_order=2, lower_order_final=True)`.

    Args:
        alphas_cumprod_T: the training schedule, [T].
        grid_nB: timesteps per step and sample, descending, [n, B].
    """

    def __init__(self, alphas_cumprod_T: Tensor, grid_nB: Tensor) -> None:
        schedule = alphas_cumprod_T.double().cpu()
        ratio = ((1 - schedule) / schedule).sqrt()[grid_nB]
        ratio = torch.cat([ratio, torch.zeros(1, grid_nB.shape[1], dtype=torch.float64)])
        alpha = 1 / (ratio**2 + 1).sqrt()
        sigma = ratio * alpha
        log_snr = alpha.log() - sigma.log()  # +inf at the end, where sigma is 0
        h = log_snr[1:] - log_snr[:-1]
        scale = alpha[1:] * (torch.exp(-h) - 1)
        second = torch.zeros_like(h)
        second[1:] = 0.5 * scale[1:] * h[1:] / h[:-1]
        self.steps = len(grid_nB)
        self._factors = Factors(sigma[:-1], alpha[:-1], sigma[1:] / sigma[:-1], scale, second)

    def step(
        self, i: int, x_BCHW: Tensor, prediction_BCHW: Tensor, last_x0: Tensor | None, *, first: int
    ) -> tuple[Tensor, Tensor]:
        """See `Solver.step`; the prediction is the noise."""
        sigma, alpha, keeps, scale, second = self._factors.at(i, x_BCHW, first=first)
        x0 = (x_BCHW - sigma * prediction_BCHW) / alpha
        following = keeps * x_BCHW - scale * x0
        if 0 < i < self.steps - 1:
            assert last_x0 is not None
            following -= second * (x0 - last_x0)
        return following, x0


class DDIM:
    """DDIM without noise (Song et al. 2021, arXiv 2010.02502), to the final sigma 0.

    It is Euler's method on latents divided by sqrt(abar), as diffusers' `EulerDiscreteScheduler`
    steps.

    Args:
        alphas_cumprod_T: the training schedule, [T].
        grid_nB: timesteps per step and sample, descending, [n, B].
        velocity: whether the prediction is v, else epsilon.
    """

    def __init__(
        self, alphas_cumprod_T: Tensor, grid_nB: Tensor, *, velocity: bool = False
    ) -> None:
        abar = alphas_cumprod_T.double().cpu()[grid_nB.cpu()]
        after = torch.cat([abar[1:], torch.ones_like(abar[:1])])
        steps = ddim_factors(abar, after, torch.zeros_like(abar), velocity=velocity)
        clean = ddim_factors(abar, torch.ones_like(abar), torch.zeros_like(abar), velocity=velocity)
        self._factors = Factors(*steps, *clean)

    def step(
        self, i: int, x_BCHW: Tensor, prediction_BCHW: Tensor, last_x0: Tensor | None, *, first: int
    ) -> tuple[Tensor, Tensor]:
        """See `Solver.step`; the prediction is the noise, or v."""
        del last_x0
        keeps, takes, x0_keeps, x0_takes = self._factors.at(i, x_BCHW, first=first)
        following = keeps * x_BCHW + takes * prediction_BCHW
        return following, x0_keeps * x_BCHW + x0_takes * prediction_BCHW


def ddim_factors(
    abar_nB: Tensor, after_nB: Tensor, std_nB: Tensor, *, velocity: bool
) -> tuple[Tensor, Tensor]:
    """Of DDIM's step A x + B prediction + std noise (its eq. 12), A and B.

    Args:
        abar_nB: of the schedule before each step, float64.
        after_nB: after it.
        std_nB: of the step's noise.
        velocity: whether the prediction is v, else epsilon.
    """
    noise = (1 - after_nB - std_nB.square()).clamp(min=0).sqrt()  # of the predicted noise
    if not velocity:
        keeps = (after_nB / abar_nB).sqrt()
        return keeps, noise - keeps * (1 - abar_nB).sqrt()
    # x0 = alpha x - sigma v; epsilon = sigma x + alpha v
    image, alpha, sigma = after_nB.sqrt(), abar_nB.sqrt(), (1 - abar_nB).sqrt()
    return image * alpha + noise * sigma, noise * alpha - image * sigma


class FlowEuler:
    """Euler's method for flow matching: x moves by velocity times the change of noise level.

    As diffusers' `FlowMatchEulerDiscreteScheduler` steps; the level after the last step is 0.

    Args:
        sigmas_nB: noise levels per step and sample, descending, float64 [n, B].
    """

    def __init__(self, sigmas_nB: Tensor) -> None:
        following_nB = torch.cat([sigmas_nB[1:], torch.zeros_like(sigmas_nB[:1])])
        self._factors = Factors(sigmas_nB, following_nB - sigmas_nB)

    def step(
        self, i: int, x_BCHW: Tensor, prediction_BCHW: Tensor, last_x0: Tensor | None, *, first: int
    ) -> tuple[Tensor, Tensor]:
        """See `Solver.step`; the prediction is the velocity, noise - x0."""
        del last_x0
        sigma, change = self._factors.at(i, x_BCHW, first=first)
        return x_BCHW + change * prediction_BCHW, x_BCHW - sigma * prediction_BCHW


class Factors:
    """Numbers per step and sample, computed in float64 on the CPU and sent to the device at once.

    Args:
        *columns: each [n, B].
    """

    def __init__(self, *columns: Tensor) -> None:
        self._values_nKB = torch.stack([column.cpu() for column in columns], dim=1)
        self._sent: Tensor | None = None

    def at(self, i: int, x_BCHW: Tensor, *, first: int) -> tuple[Tensor, ...]:
        """Each column at step i for the samples from `first` on, to multiply latents by."""
        if self._sent is None:
            self._sent = to_device(self._values_nKB, x_BCHW.device, x_BCHW.dtype)
        return self._sent[i, :, first:, None, None, None].unbind()

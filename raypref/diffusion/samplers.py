"""DPM-Solver++(2M) that steps every sample of a batch on its own time grid.

Stock schedulers share one grid over the batch. Diffusion-DRO jitters the grid per sample; its
released sampler then gives every sample the first one's sigmas, while here each keeps its own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def jittered_grid(*, steps: int, train_steps: int, offsets_B: Tensor) -> Tensor:
    """Descending timesteps, one column a sample (method: section 2).

    Args:
        steps: solver steps n.
        train_steps: length of the training schedule T, 1000.
        offsets_B: integer jitter per sample, each in [0, T // n).

    Returns:
        Timesteps [n, B], int64: `arange(n) * (T // n)` reversed, plus the sample's offset.
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
        self.alpha = 1 / (ratio**2 + 1).sqrt()
        self.sigma = ratio * self.alpha
        self.log_snr = self.alpha.log() - self.sigma.log()  # +inf at the end, where sigma is 0
        self.steps = len(grid_nB)

    def step(
        self, i: int, x_BCHW: Tensor, eps_BCHW: Tensor, last_x0: Tensor | None, samples_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step for some of the samples.

        Args:
            i: index of the step, 0 .. n-1.
            x_BCHW: their noisy latents at step i.
            eps_BCHW: the noise predicted there.
            last_x0: their clean prediction of step i-1; None at step 0.
            samples_B: which columns of the grid they are, int64 [B].

        Returns:
            Latents at step i+1 and the clean prediction of step i.
        """

        def per_sample(values_B: Tensor) -> Tensor:
            return values_B.to(x_BCHW.device, x_BCHW.dtype).view(-1, 1, 1, 1)

        alpha, sigma, log_snr = (
            values[:, samples_B] for values in (self.alpha, self.sigma, self.log_snr)
        )
        x0 = (x_BCHW - per_sample(sigma[i]) * eps_BCHW) / per_sample(alpha[i])
        h = log_snr[i + 1] - log_snr[i]
        scale = alpha[i + 1] * (torch.exp(-h) - 1)
        following = per_sample(sigma[i + 1] / sigma[i]) * x_BCHW - per_sample(scale) * x0
        if 0 < i < self.steps - 1:
            assert last_x0 is not None
            h_last = log_snr[i] - log_snr[i - 1]
            following -= per_sample(0.5 * scale * h / h_last) * (x0 - last_x0)
        return following, x0

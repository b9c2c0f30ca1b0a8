"""Flow matching, as families share it: the forward process, what is predicted, how it is solved.

Time runs on noise levels sigma in (0, 1]: x = (1 - sigma) x0 + sigma noise. A timestep is
1000 * sigma, kept in float64 so that dividing gives back the scheduler's float32 sigma exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raypref.models.families.base import Shape
from raypref.models.hub import from_pretrained
from raypref.models.solvers import FlowEuler
from raypref.models.stochastic import StochasticSolver, flow_sde


class FlowMatching:
    """A transformer that predicts velocity, with its noise process.

    Where its scheduler has `use_dynamic_shifting`, the levels of training are not shifted.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of the frozen weights; adapters on top stay in float32 or better.
    """

    component = "transformer"
    network: str  # its class in diffusers

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        import diffusers

        kind, files = getattr(diffusers, self.network), {"variant": variant or None, "dtype": dtype}
        self.module = from_pretrained(kind, model, subfolder=self.component, **files)
        self.module.to(device).eval()
        self.device = device
        self.dtype = dtype
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler
        self.schedule = from_pretrained(scheduler, model, subfolder="scheduler")
        # As loaded: `set_timesteps` shifts the shifted levels once more.
        self._timesteps_T: Tensor = self.schedule.sigmas.flip(0).double() * self._scale

    @property
    def _scale(self) -> int:
        scale: int = self.schedule.config.num_train_timesteps
        return scale

    def training_timesteps(self, shape: Shape) -> Tensor:
        """The scheduler's, the same for every size."""
        del shape
        return self._timesteps_T

    def draw_timestep(self, generator: torch.Generator, shape: Shape) -> Tensor:
        """Logit-normal: index int(1000 u), u = sigmoid(N(0, 1)).

        The index counts the schedule from pure noise down. Its levels are shifted already, so that
        the mean sigma is 0.72 with a shift of 3.
        """
        timesteps_T = self.training_timesteps(shape)
        count = len(timesteps_T)
        index = int(torch.randn((), generator=generator).sigmoid() * count)
        return timesteps_T[count - 1 - min(index, count - 1)]

    def solver(self, grid_nB: Tensor) -> FlowEuler:
        """Euler's method from noise level to noise level."""
        return FlowEuler(grid_nB / self._scale)

    def stochastic_solver(
        self, grid_nB: Tensor, *, eta: float, constant: bool = False, window: range | None = None
    ) -> StochasticSolver:
        """The SDE of Flow-GRPO, or with `constant` that of DanceGRPO."""
        return flow_sde(grid_nB / self._scale, eta=eta, constant=constant, window=window)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """The forward process: (1 - sigma) x0 + sigma noise."""
        sigma = (timesteps_B / self._scale).to(latents_BCHW).view(-1, 1, 1, 1)
        return (1 - sigma) * latents_BCHW + sigma * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the network should predict for a noised latent: the velocity, noise - x0."""
        del timesteps_B
        return noise_BCHW - latents_BCHW

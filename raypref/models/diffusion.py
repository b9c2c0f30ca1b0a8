"""Diffusion on a schedule of T steps, as families share it: the forward process, what is predicted.

A timestep t is an index of the schedule, 0 .. T-1: x = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raypref.models.families.base import Shape
from raypref.models.hub import from_pretrained
from raypref.models.stochastic import StochasticSolver, ddim_eta


class Diffusion:
    """A UNet that predicts epsilon, the noise, or v (`v_prediction`), with its noise process.

    v is sqrt(abar) noise - sqrt(1 - abar) x0 (Salimans and Ho 2022, arXiv 2202.00512).

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of the frozen weights; adapters on top stay in float32 or better.
    """

    component = "unet"
    network = "UNet2DConditionModel"  # its class in diffusers

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel

        self.module = from_pretrained(
            UNet2DConditionModel, model, subfolder="unet", variant=variant or None, dtype=dtype
        )
        self.module.to(device, memory_format=torch.channels_last).eval()
        self.device = device
        self.dtype = dtype
        self.schedule = from_pretrained(DDPMScheduler, model, subfolder="scheduler")
        self.velocity: bool = self.schedule.config.prediction_type == "v_prediction"

    def training_timesteps(self, shape: Shape) -> Tensor:
        """0 .. T-1, whatever the size."""
        del shape
        return torch.arange(len(self.schedule.alphas_cumprod))

    def draw_timestep(self, generator: torch.Generator, shape: Shape) -> Tensor:
        """Uniform on 0 .. T-1."""
        return torch.randint(len(self.training_timesteps(shape)), (), generator=generator)

    def stochastic_solver(
        self, grid_nB: Tensor, *, eta: float, constant: bool = False, window: range | None = None
    ) -> StochasticSolver:
        """DDIM with noise; `constant` is about flows."""
        del constant
        abar_T, velocity = self.schedule.alphas_cumprod, self.velocity
        return ddim_eta(abar_T, grid_nB, eta=eta, window=window, velocity=velocity)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """The forward process: sqrt(abar) x0 + sqrt(1 - abar) noise."""
        noised: Tensor = self.schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        return noised

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """What the network should predict for a noised latent: the noise, or v."""
        if not self.velocity:
            return noise_BCHW
        v_BCHW: Tensor = self.schedule.get_velocity(latents_BCHW, noise_BCHW, timesteps_B)
        return v_BCHW

"""Plain Qwen-Image, for `plain_training.py`: it shares no code with the project."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import QwenImagePipeline
from plain_training import SD3, Several, T
from torch import Tensor, nn


class QwenImage(SD3):
    """Velocity prediction on tokens of 2x2 latents; levels without a shift; a frame of video."""

    kind: Any = QwenImagePipeline

    def prompt(self, text: str) -> Any:
        states, mask = self.pipe.encode_prompt([text or " "], "cpu")
        assert mask is None  # a text alone has no padding
        return states

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        """For texts of one length; in float64 but where queries and keys are turned."""
        n, (_, h, w) = len(xs), xs[0].shape
        made = module(
            hidden_states=self.pipe._pack_latents(torch.stack(xs), n, *xs[0].shape),
            timestep=torch.tensor(ts, dtype=torch.float64) / T,
            encoder_hidden_states=torch.cat(prompts),
            img_shapes=[[(1, h // 2, w // 2)]] * n,
        ).sample
        return self.pipe._unpack_latents(made, 8 * h, 8 * w, 8)[:, :, 0]

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of what the autoencoder says of [1, 3, H, W]."""
        found = self.pipe.vae.encode(pixels[:, :, None]).latent_dist
        return found.mean[0][:, 0], found.std[0][:, 0]

    def scaled(self, latent: Tensor) -> Tensor:
        """As the transformer reads it."""
        config = self.pipe.vae.config
        mean, deviation = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        return (latent - mean[:, None, None]) / deviation[:, None, None]

    def even(self, n: int) -> list[float]:
        """1 to 1 / n, shifted by exp(mu), then stretched so that the last is 0.02.

        mu goes from 0.5 at 256 tokens to 0.9 at 8192.
        """
        mu = 0.5 + (16 - 256) * (0.9 - 0.5) / (8192 - 256)  # of 64x64 pixels
        plain = [1 - i / n for i in range(n)]
        shifted = [math.exp(mu) / (math.exp(mu) + 1 / s - 1) for s in plain]
        stretch = (1 - 0.02) / (1 - shifted[-1])
        return [T * (1 - (1 - s) * stretch) for s in shifted]

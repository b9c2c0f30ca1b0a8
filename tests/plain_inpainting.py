"""Plain families that inpaint, and FLUX.1, for `plain_training.py`: no code of the project.

A prompt of an inpainting family has two parts: what the text encoders say, what is around the hole.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import FluxFillPipeline, FluxPipeline, StableDiffusionInpaintPipeline
from PIL import Image
from plain_qwen_image import QwenImage
from plain_sdxl import SDXL
from plain_training import SD3, SD15, T
from plain_z_image import ZImage
from torch import Tensor, nn


class SD15Inpaint(SD15):
    """Noisy latents, the mask (1: repaint), latents of the photograph with a grey hole."""

    kind: Any = StableDiffusionInpaintPipeline

    def around(self, photo: Image.Image, mask: Image.Image) -> Tensor:
        paint = binary(mask)
        latents = self.masked(photo, paint) * self.pipe.vae.config.scaling_factor
        return torch.cat([paint[None, ::8, ::8], latents])

    def masked(self, photo: Image.Image, paint: Tensor) -> Tensor:
        """The mean of its latents, the hole being 0 of -1 .. 1."""
        pixels = torch.tensor(np.asarray(photo)).permute(2, 0, 1).double() / 127.5 - 1
        with torch.no_grad():
            found = self.pipe.vae.encode((pixels * (1 - paint))[None]).latent_dist
        return found.mean[0]

    def call(self, module: nn.Module, x: Tensor, t: float, prompt: Any) -> Tensor:
        text, around = prompt
        return super().call(module, torch.cat([x, around]), t, text)


class Flux(SD3):
    """Velocity prediction on tokens of 2x2 latents; levels without a shift; guidance 3.5."""

    kind: Any = FluxPipeline
    tokens = 16  # that are read of a text
    guidance = 3.5

    def prompt(self, text: str) -> Any:
        sequence, pooled, text_ids = self.pipe.encode_prompt([text], device="cpu")
        return sequence[:, : self.tokens], pooled, text_ids[: self.tokens]

    def call(self, module: nn.Module, x: Tensor, t: float, prompt: Any) -> Tensor:
        return self.moved(module, x, t, prompt, ())

    def moved(
        self, module: nn.Module, x: Tensor, t: float, text: Any, more: tuple[Tensor, ...]
    ) -> Tensor:
        """The velocity, of tokens with more channels."""
        sequence, pooled, text_ids = text
        c, h, w = x.shape
        tokens = self.pipe._pack_latents(x[None], 1, c, h, w)
        ids = [[0, row, column] for row in range(h // 2) for column in range(w // 2)]
        made = module(
            hidden_states=torch.cat([tokens, *more], dim=2),
            timestep=torch.tensor([t], dtype=torch.float64) / T,
            guidance=torch.tensor([self.guidance]),
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            txt_ids=text_ids,
            img_ids=torch.tensor(ids, dtype=torch.float64),
        ).sample
        return self.pipe._unpack_latents(made, 8 * h, 8 * w, 8)[0]

    def draw_timestep(self, generator: torch.Generator) -> float:
        return T * self.levels[T - 1 - int(torch.randint(T, (), generator=generator))]

    def even(self, n: int) -> list[float]:
        """1 to 1 / n, shifted by exp(mu); mu goes from 0.5 at 256 tokens to 1.15 at 4096."""
        mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)  # of 64x64 pixels
        plain = [1 - i / n for i in range(n)]
        return [T * math.exp(mu) / (math.exp(mu) + 1 / s - 1) for s in plain]


class FluxFill(Flux):
    """With what is around the hole; guidance 1."""

    kind: Any = FluxFillPipeline
    guidance = 1.0

    def around(self, photo: Image.Image, mask: Image.Image) -> Tensor:
        """Tokens of the masked latents and of the mask's pixels, by the pipeline's own code."""
        paint = binary(mask)[None, None]
        pixels = torch.tensor(np.asarray(photo)).permute(2, 0, 1).double()[None] / 127.5 - 1
        vae = self.pipe.vae
        with torch.no_grad():
            mean = vae.encode(pixels * (1 - paint)).latent_dist.mean
        size = mask.height, mask.width
        # Given latents, it encodes nothing.
        made = self.pipe.prepare_mask_latents(
            *(paint, mean, 1, vae.config.latent_channels, 1, *size, torch.float64, "cpu", None)
        )
        return torch.cat(made[::-1], dim=2)

    def call(self, module: nn.Module, x: Tensor, t: float, prompt: Any) -> Tensor:
        text, around = prompt
        return self.moved(module, x, t, text, (around,))


def binary(mask: Image.Image) -> Tensor:
    """1 where to repaint, [H, W]."""
    return torch.tensor(np.asarray(mask) > 127).double()


@cache
def family_of(name: str, folder: str) -> Any:
    """A family's pipeline, loaded once."""
    kinds: Any = {"sd15": SD15, "sdxl": SDXL, "sd15_inpaint": SD15Inpaint, "sd35m": SD3}
    kinds |= {"flux": Flux, "flux_fill": FluxFill, "z_image": ZImage, "qwen_image": QwenImage}
    return kinds[name](folder)

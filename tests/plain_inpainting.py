"""Plain families that inpaint, and FLUX.1, for `plain_training.py`: no code of the project.

A prompt of an inpainting family has two parts: what the text encoders say, what is around the hole.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import (
    FluxFillPipeline,
    FluxPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image
from plain_flux2_klein import Flux2Klein
from plain_qwen_image import QwenImage
from plain_sdxl import SDXL
from plain_training import SD3, SD15, Several, T
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

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        texts, around = zip(*prompts, strict=True)
        read = [torch.cat(parts) for parts in zip(xs, around, strict=True)]
        return super().many(module, read, ts, texts)


class SDXLInpaint(SD15Inpaint, SDXL):
    """SDXL with the channels of SD-1.5's inpainting member."""

    kind: Any = StableDiffusionXLInpaintPipeline


class Flux(SD3):
    """Velocity prediction on tokens of 2x2 latents; levels without a shift; guidance 3.5."""

    kind: Any = FluxPipeline
    tokens = 16  # that are read of a text
    guidance = 3.5

    def prompt(self, text: str) -> Any:
        sequence, pooled, text_ids = self.pipe.encode_prompt([text], device="cpu")
        return sequence[:, : self.tokens], pooled, text_ids[: self.tokens]

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        return self.moved(module, torch.stack(xs), ts, prompts, ())

    def moved(
        self,
        module: nn.Module,
        x: Tensor,
        ts: Several,
        texts: Several,
        more: tuple[Tensor, ...],
    ) -> Tensor:
        """Velocities, of tokens with more channels."""
        sequences, pooled, [text_ids, *_] = zip(*texts, strict=True)
        tokens = self.pipe._pack_latents(x, *x.shape)
        h, w = x.shape[2:]
        ids = [[0, row, column] for row in range(h // 2) for column in range(w // 2)]
        made = module(
            hidden_states=torch.cat([tokens, *more], dim=2),
            timestep=torch.tensor(ts, dtype=torch.float64) / T,
            guidance=torch.tensor([self.guidance] * len(ts)),
            pooled_projections=torch.cat(pooled),
            encoder_hidden_states=torch.cat(sequences),
            txt_ids=text_ids,
            img_ids=torch.tensor(ids, dtype=torch.float64),
        ).sample
        return self.pipe._unpack_latents(made, 8 * h, 8 * w, 8)

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

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        texts, around = zip(*prompts, strict=True)
        return self.moved(module, torch.stack(xs), ts, texts, (torch.cat(around),))


def binary(mask: Image.Image) -> Tensor:
    """1 where to repaint, [H, W]."""
    return torch.tensor(np.asarray(mask) > 127).double()


@cache
def family_of(name: str, folder: str) -> Any:
    """A family's pipeline, loaded once."""
    kinds: dict[str, Any] = {"sd15": SD15, "sdxl": SDXL, "sd15_inpaint": SD15Inpaint, "sd35m": SD3}
    kinds |= {"flux": Flux, "flux_fill": FluxFill, "flux2_klein": Flux2Klein}
    kinds |= {"z_image": ZImage, "qwen_image": QwenImage, "sdxl_inpaint": SDXLInpaint}
    return kinds[name](folder)

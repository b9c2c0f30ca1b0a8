"""Stable Diffusion 1.5 that inpaints: its UNet also reads a mask and the latents around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raypref.models.autoencoder import KLAutoencoder
from raypref.models.families import sd15
from raypref.models.families.sd15 import SD15Conditioning, SD15Denoiser


class SD15InpaintAutoencoder(KLAutoencoder):
    """SD-1.5's autoencoder, and what the UNet reads of the image around a mask."""

    @torch.no_grad()
    def surroundings(self, images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Tensor:
        """The mask and the image without what it covers, [B, 1 + 4, H/8, W/8].

        As the pipeline makes them, but for the latents: their mean, where it draws a sample.

        Args:
            images: RGB, all of one size divisible by 8.
            masks: of that size, bright where to paint; binarised at 0.5.
        """
        grey = np.stack([np.asarray(mask.convert("L")) for mask in masks])
        paint_B1HW = torch.from_numpy(grey >= 128)[:, None].to(self.vae.device)
        around_BCHW = self.pixels(images).to(self.vae.dtype) * ~paint_B1HW
        latents = self.vae.encode(around_BCHW).latent_dist.mean * self.scale
        return torch.cat(
            [F.interpolate(paint_B1HW.to(latents), latents.shape[-2:]), latents], dim=1
        )


class SD15InpaintDenoiser(SD15Denoiser):
    """The UNet of nine channels: noisy latents, mask, latents of the image around it."""

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: SD15Conditioning
    ) -> Tensor:
        """The network's prediction with the active adapter, [B, 4, H, W]."""
        assert conditioning.surroundings_BKHW is not None
        channels = torch.cat([x_BCHW, conditioning.surroundings_BKHW.to(x_BCHW.dtype)], dim=1)
        return super().predict(channels, timesteps_B, conditioning)


def _paint_everything(prompts: list[str], guidance: float, side: int) -> dict[str, Any]:
    """A call that draws from prompts alone: the mask is the whole picture."""
    count = len(prompts)
    return {
        "prompt": prompts,
        "image": [Image.new("RGB", (side, side))] * count,
        "mask_image": [Image.new("L", (side, side), 255)] * count,
        "guidance_scale": guidance,
        "height": side,
        "width": side,
    }


FAMILY = replace(
    sd15.FAMILY,
    autoencoder=SD15InpaintAutoencoder,
    denoiser=SD15InpaintDenoiser,
    pipeline="StableDiffusionInpaintPipeline",
    channels=4 + 1 + 4,
    arguments=_paint_everything,
    hole=lambda surroundings_BKHW: surroundings_BKHW[:, :1],
)

"""Stable Diffusion 1.5 that inpaints: its UNet also reads a mask and the latents around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raypref.models.autoencoder import KLAutoencoder
from raypref.models.families import sd15
from raypref.models.families.base import paint_everything
from raypref.models.families.conditioning import Conditioning
from raypref.models.families.sd15 import SD15Conditioning, SD15Denoiser


class SD15InpaintAutoencoder(KLAutoencoder):
    """SD-1.5's autoencoder, and what the UNet reads of the image around a mask."""

    @torch.no_grad()
    def surroundings(self, images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Tensor:
        """The mask and the image without what it covers, [B, 1 + 4, H/8, W/8].

        Args:
            images: RGB, all of one size divisible by 8.
            masks: of that size, bright where to paint; binarised at 0.5.
        """
        paint_B1HW, latents_BCHW = self.masked(images, masks)
        mask_B1HW = F.interpolate(paint_B1HW.to(latents_BCHW), latents_BCHW.shape[-2:])
        return torch.cat([mask_B1HW, latents_BCHW], dim=1)


class SD15InpaintDenoiser(SD15Denoiser):
    """The UNet of nine channels: noisy latents, mask, latents of the image around it."""

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: SD15Conditioning
    ) -> Tensor:
        """The network's prediction with the active adapter, [B, 4, H, W]."""
        channels_BCHW = beside_surroundings(x_BCHW, conditioning)
        return super().predict(channels_BCHW, timesteps_B, conditioning)


def beside_surroundings(x_BCHW: Tensor, conditioning: Conditioning) -> Tensor:
    """Noisy latents, the mask, latents of the image around it, [B, 4 + 1 + 4, h, w]."""
    assert conditioning.surroundings_BKHW is not None
    return torch.cat([x_BCHW, conditioning.surroundings_BKHW.to(x_BCHW.dtype)], dim=1)


FAMILY = replace(
    sd15.FAMILY,
    autoencoder=SD15InpaintAutoencoder,
    denoiser=SD15InpaintDenoiser,
    pipeline="StableDiffusionInpaintPipeline",
    channels=4 + 1 + 4,
    arguments=paint_everything,
    hole=lambda surroundings_BKHW: surroundings_BKHW[:, :1],
)

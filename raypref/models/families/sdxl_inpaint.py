"""Stable Diffusion XL that inpaints: its UNet also reads a mask and the latents around it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from raypref.models.families import sd15_inpaint, sdxl
from raypref.models.families.base import paint_everything
from raypref.models.families.sd15_inpaint import SD15InpaintAutoencoder, beside_surroundings
from raypref.models.families.sdxl import SDXLAutoencoder, SDXLConditioning, SDXLDenoiser


class SDXLInpaintAutoencoder(SDXLAutoencoder, SD15InpaintAutoencoder):
    """SDXL's autoencoder; what the UNet reads of the image around a mask is as in SD-1.5's member.

    The pipeline encodes what is around a mask in float32 in either half precision, where the
    autoencoder's configuration says `force_upcast`: so it works in float32 in bfloat16 too.
    Arguments are those of `KLAutoencoder`.
    """

    upcast = (torch.float16, torch.bfloat16)


class SDXLInpaintDenoiser(SDXLDenoiser):
    """The UNet of nine channels: noisy latents, mask, latents of the image around it."""

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: SDXLConditioning
    ) -> Tensor:
        """The network's prediction with the active adapter, [B, 4, H, W]."""
        channels_BCHW = beside_surroundings(x_BCHW, conditioning)
        return super().predict(channels_BCHW, timesteps_B, conditioning)


def _arguments(prompts: list[str], guidance: float, side: int) -> dict[str, Any]:
    """Arguments of the pipeline's call: it starts from pure noise, as trainings' rollouts do.

    By default (`strength=0.9999`) it would leave out a step and start from the noised image.
    """
    return {**paint_everything(prompts, guidance, side), "strength": 1.0}


FAMILY = replace(
    sdxl.FAMILY,
    autoencoder=SDXLInpaintAutoencoder,
    denoiser=SDXLInpaintDenoiser,
    pipeline="StableDiffusionXLInpaintPipeline",
    channels=sd15_inpaint.FAMILY.channels,
    arguments=_arguments,
    hole=sd15_inpaint.FAMILY.hole,
)

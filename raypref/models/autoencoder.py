"""Diffusers' `AutoencoderKL`, frozen: images to the Gaussian over latents, latents to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from raypref.models.hub import from_pretrained


def work_among(vae: Any, dtype: torch.dtype) -> None:
    """Let an autoencoder work in a pipeline whose other parts are of another precision, in place.

    It casts images and latents that it is given to its own precision, and the moments of an image
    to theirs. Decoded pixels stay as precise as they are. One of float16 that overflows is still
    brought to float32 by the pipeline (`force_upcast`); another is left as it is, which SDXL's
    inpainting pipeline would cast to the precision of the other parts.

    Args:
        vae: diffusers' `AutoencoderKL`.
        dtype: of the other parts.
    """

    def given(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].to(vae.dtype), *inputs[1:])

    def moments(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.to(dtype)

    if vae.dtype != torch.float16:
        vae.register_to_config(force_upcast=False)
    for first in (vae.encoder, vae.post_quant_conv, vae.decoder):
        if first is not None:
            first.register_forward_pre_hook(given)
    (vae.quant_conv or vae.encoder).register_forward_hook(moments)


class KLAutoencoder:
    """The autoencoder of a checkpoint. Its configuration says shift (none in SD-1.5) and scale.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of weights and results.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        from diffusers import AutoencoderKL

        self.vae = from_pretrained(
            AutoencoderKL, model, subfolder="vae", variant=variant or None, dtype=dtype
        )
        self.vae.to(device).eval().requires_grad_(False)
        self.shift = self.vae.config.shift_factor or 0.0
        self.scale = self.vae.config.scaling_factor

    @torch.no_grad()
    def image_moments(self, images: Sequence[Image.Image]) -> Tensor:
        """Mean and log-variance of the latents as the denoiser sees them: shifted, then scaled.

        Args:
            images: RGB, all of one size divisible by 8.

        Returns:
            [B, 2, C, H/8, W/8]: mean and log-variance of `(latent - shift) * scale`.
        """
        posterior = self.vae.encode(self.pixels(images).to(self.vae.dtype)).latent_dist
        log_variance = posterior.logvar + 2 * math.log(self.scale)
        return torch.stack([(posterior.mean - self.shift) * self.scale, log_variance], dim=1)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images on the device, in -1 .. 1, [B, 3, H, W].

        In float32 or better; to be rounded after, as the pipelines' own preprocessing does.
        """
        precise = torch.promote_types(self.vae.dtype, torch.float32)
        pixels = np.stack([np.asarray(image) for image in images])
        x_BHWC = torch.from_numpy(pixels).to(self.vae.device, precise)
        return x_BHWC.permute(0, 3, 1, 2) / 255 * 2 - 1

    @torch.no_grad()
    def masked(
        self, images: Sequence[Image.Image], masks: Sequence[Image.Image]
    ) -> tuple[Tensor, Tensor]:
        """Masks, and the latents of images without what they cover, which is grey instead.

        As the pipelines do, but with the mean of the latents instead of a sample.

        Args:
            images: RGB, all of one size divisible by 8.
            masks: of that size, bright where to paint; binarised at 0.5.

        Returns:
            True where to paint, [B, 1, H, W]; latents as the denoiser sees them, [B, C, H/8, W/8].
        """
        grey = np.stack([np.asarray(mask.convert("L")) for mask in masks])
        paint_B1HW = torch.from_numpy(grey >= 128)[:, None].to(self.vae.device)
        around_BCHW = self.pixels(images).to(self.vae.dtype) * ~paint_B1HW
        mean_BCHW = self.vae.encode(around_BCHW).latent_dist.mean
        return paint_B1HW, (mean_BCHW - self.shift) * self.scale

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pixels as the pipelines draw them; the gradient flows, but not where they are clipped.

        Args:
            latents_BCHW: as the denoiser sees them, in any precision.

        Returns:
            RGB in [0, 1], [B, 3, 8 h, 8 w], in the precision of the weights.
        """
        x_BCHW = (latents_BCHW / self.scale + self.shift).to(self.vae.dtype)
        return (self.vae.decode(x_BCHW).sample * 0.5 + 0.5).clamp(0, 1)

"""Inpainting with PixArt-alpha, for which diffusers has no pipeline: latents are blended.

After every step what is to be kept is set to the photograph's latents at that step's noise level,
so the model paints the rest around them (RePaint, arXiv 2201.09865, without its resampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import PixArtAlphaPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch.nn import functional as F


class PixArtAlphaInpaintPipeline(PixArtAlphaPipeline):
    """Called like diffusers' inpainting pipelines; always repaints from pure noise."""

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str],
        image: Sequence[Image.Image],
        mask_image: Sequence[Image.Image],
        *,
        height: int,
        width: int,
        generator: list[torch.Generator],
        strength: float = 1.0,
        sampled: bool = False,
        **settings: Any,
    ) -> Any:
        """Repaint the masked region of each image from its prompt.

        Args:
            prompt: one an image.
            image: what to repaint.
            mask_image: bright where to repaint; binarised at 0.5.
            height: of the result, pixels; divisible by the autoencoder's factor times the patch.
            width: likewise.
            generator: one an image.
            strength: 1; less is not supported.
            sampled: keep a sample of the photograph's latents, drawn after the noise, not the mode.
            settings: of `PixArtAlphaPipeline`.
        """
        assert strength == 1, "PixArt-alpha repaints from pure noise only"
        masks = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor,
            do_normalize=False,
            do_binarize=True,
            do_convert_grayscale=True,
        )
        x_BCHW = self.image_processor.preprocess(list(image), height=height, width=width)
        x_BCHW = x_BCHW.to(self._execution_device, self.vae.dtype)
        posterior = self.vae.encode(x_BCHW).latent_dist
        photo_BCHW = posterior.mode() * self.vae.config.scaling_factor
        like = {"device": photo_BCHW.device, "dtype": photo_BCHW.dtype}
        noise_BCHW = randn_tensor(photo_BCHW.shape, generator=generator, **like)
        if sampled:
            apart_BCHW = posterior.std * randn_tensor(photo_BCHW.shape, generator=generator, **like)
            photo_BCHW = (posterior.mean + apart_BCHW) * self.vae.config.scaling_factor
        mask_B1HW = masks.preprocess(list(mask_image), height=height, width=width)
        repaint = F.interpolate(mask_B1HW, size=photo_BCHW.shape[-2:]).to(photo_BCHW) > 0.5

        def keep(step: int, t: Any, latents_BCHW: torch.Tensor) -> None:
            # The pipeline ignores what its callback returns, so the latents are changed in place.
            later = self.scheduler.timesteps[step + 1 : step + 2]
            known = photo_BCHW
            if len(later):
                known = self.scheduler.add_noise(photo_BCHW, noise_BCHW, later)
            latents_BCHW.copy_(torch.where(repaint, latents_BCHW, known))

        return super().__call__(
            prompt=prompt,
            height=height,
            width=width,
            latents=noise_BCHW,
            callback=keep,
            use_resolution_binning=False,  # it would repaint another size than asked
            clean_caption=False,
            **settings,
        )

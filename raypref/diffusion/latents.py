"""Images to the Gaussian over latents that an autoencoder gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@torch.no_grad()
def moments(vae: Any, images: Sequence[Image.Image]) -> Tensor:
    """Mean and log-variance of the latents as the denoiser sees them: shifted, then scaled.

    Args:
        vae: an `AutoencoderKL`; its configuration says shift (none in SD-1.5) and scale.
        images: RGB, all of one size divisible by 8.

    Returns:
        [B, 2, C, H/8, W/8]: mean and log-variance of `(latent - shift) * scale`.
    """
    pixels = np.stack([np.asarray(image) for image in images])
    # Rounded to half precision at the end, as the pipelines' own preprocessing does.
    precise = torch.promote_types(vae.dtype, torch.float32)
    x_BCHW = torch.from_numpy(pixels).to(vae.device, precise).permute(0, 3, 1, 2) / 255 * 2 - 1
    posterior = vae.encode(x_BCHW.to(vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor or 0.0, vae.config.scaling_factor
    log_variance = posterior.logvar + 2 * math.log(scale)
    return torch.stack([(posterior.mean - shift) * scale, log_variance], dim=1)

"""FLUX.1 Fill: FLUX.1 that inpaints; its transformer also reads a mask and the latents around it.

Trainings and their rollouts give it guidance 1, as Follow-Your-Preference's release trains; images
are drawn with `evaluate.guidance` (30 there).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raypref.models.autoencoder import KLAutoencoder
from raypref.models.families.base import Family, paint_everything
from raypref.models.families.flux import (
    CHANNELS,
    PARTS,
    PATCH,
    FluxConditioning,
    FluxDenoiser,
    FluxTextEncoder,
    side_unit,
)
from raypref.models.lora_config import JOINT_ATTENTION

PIXELS = 8  # a side of what becomes one latent


class FluxFillAutoencoder(KLAutoencoder):
    """FLUX's autoencoder, and what the transformer reads of the image around a mask."""

    @torch.no_grad()
    def surroundings(self, images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Tensor:
        """The image without what the mask covers, and the mask, [B, 16 + 64, H/8, W/8].

        Of the mask all 8x8 pixels of a latent are kept, a channel each, the upper left one first.

        Args:
            images: RGB, all of one size divisible by 16.
            masks: of that size, bright where to paint; binarised at 0.5.
        """
        paint_B1HW, latents_BCHW = self.masked(images, masks)
        paint_BKHW = F.pixel_unshuffle(paint_B1HW.to(latents_BCHW), PIXELS)
        return torch.cat([latents_BCHW, paint_BKHW], dim=1)


class FluxFillDenoiser(FluxDenoiser):
    """The transformer with its noise schedule: FLUX.1's, with surroundings."""

    guidance = 1.0


def _hole(surroundings_BKHW: Tensor) -> Tensor:
    """The pixel at the upper left corner of each latent, as nearest neighbours take it."""
    return surroundings_BKHW[:, CHANNELS : CHANNELS + 1]


FAMILY = Family(
    FluxTextEncoder,
    FluxFillAutoencoder,
    FluxFillDenoiser,
    FluxConditioning,
    pipeline="FluxFillPipeline",
    network=FluxFillDenoiser.network,
    channels=PATCH**2 * (CHANNELS + CHANNELS + PIXELS**2),
    parts=PARTS,
    targets=JOINT_ATTENTION,
    options={},
    arguments=paint_everything,
    side_unit=side_unit,
    hole=_hole,
)

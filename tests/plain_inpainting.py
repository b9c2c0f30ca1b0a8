"""Plain families that inpaint, for `plain_training.py`: they share no code with the project.

A prompt is a pair here: what the text encoders say, and what is around the hole.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image
from plain_training import SD3, SD15
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


def binary(mask: Image.Image) -> Tensor:
    """1 where to repaint, [H, W]."""
    return torch.tensor(np.asarray(mask) > 127).double()


@cache
def family_of(name: str, folder: str) -> Any:
    """A family's pipeline, loaded once."""
    return {"sd15": SD15, "sd15_inpaint": SD15Inpaint, "sd35m": SD3}[name](folder)

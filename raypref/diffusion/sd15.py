"""Stable Diffusion 1.5: a UNet predicts epsilon on 4-channel latents; one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from raypref.config import InputError

PIPELINE = StableDiffusionPipeline


class SD15Encoder:
    """The frozen parts that turn images and captions into what the UNet reads.

    Args:
        model: folder or hub id in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of weights and results.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.vae = AutoencoderKL.from_pretrained(
            model, subfolder="vae", variant=variant or None, dtype=dtype
        )
        self.vae.to(device).eval().requires_grad_(False)
        self.text_encoder = CLIPTextModel.from_pretrained(
            model, subfolder="text_encoder", variant=variant or None, dtype=dtype
        )
        self.text_encoder.to(device=device)  # type: ignore[call-arg]
        self.text_encoder.eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
        self.device = device
        self.dtype = dtype

    @torch.no_grad()
    def image_moments(self, images: Sequence[Image.Image]) -> Tensor:
        """Mean and log-variance of the latents, already scaled to what the UNet sees.

        Args:
            images: RGB, all of one size divisible by 8.

        Returns:
            [B, 2, C, H/8, W/8]: mean and log-variance of `vae.scaling_factor * latent`.
        """
        pixels = np.stack([np.asarray(image) for image in images])
        x_BCHW = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        x_BCHW = x_BCHW.to(self.dtype) / 127.5 - 1
        posterior = self.vae.encode(x_BCHW).latent_dist
        scale = self.vae.config.scaling_factor
        log_variance = posterior.logvar + 2 * float(np.log(scale))
        return torch.stack([posterior.mean * scale, log_variance], dim=1)

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Last hidden states of the captions, cut or padded to 77 tokens: [B, 77, D]."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self.device))[0]


class SD15Denoiser:
    """The UNet with its noise schedule.

    Args:
        model: folder or hub id in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of the frozen weights; adapters on top stay in float32 or better.
    """

    component = "unet"

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.module = UNet2DConditionModel.from_pretrained(
            model, subfolder="unet", variant=variant or None, dtype=dtype
        )
        self.module.to(device, memory_format=torch.channels_last).eval()
        self.schedule = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
        if self.schedule.config.prediction_type != "epsilon":
            raise InputError(
                f"base.model: '{model}' predicts {self.schedule.config.prediction_type}; the sd15 "
                "family trains epsilon prediction"
            )
        self.device = device
        self.dtype = dtype
        self.alphas_cumprod_T = self.schedule.alphas_cumprod

    @property
    def train_steps(self) -> int:
        """Length T of the training schedule, 1000."""
        return len(self.alphas_cumprod_T)

    def draw_timestep(self, generator: torch.Generator) -> int:
        """Uniform on 0 .. T-1 (method: section 3)."""
        return int(torch.randint(self.train_steps, (), generator=generator))

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """The forward process: sqrt(abar) x0 + sqrt(1 - abar) noise."""
        return self.schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        """What the network should predict for a noised latent: the noise."""
        del latents_BCHW
        return noise_BCHW

    def predict(self, x_BCHW: Tensor, timesteps_B: Tensor, prompts_BLD: Tensor) -> Tensor:
        """The network's prediction with the active adapter, [B, C, H, W]."""
        half = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=half):
            return self.module(x_BCHW, timesteps_B, prompts_BLD).sample

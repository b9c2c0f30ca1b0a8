"""FLUX.2 [klein], base and distilled: Qwen3 reads captions, a batch norm scales latents.

There is no paper; the networks are diffusers'. The base models are guided; the others, of the same
layout, are distilled for four steps without guidance, and their pipeline ignores a guidance scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from raypref.models.autoencoder import KLAutoencoder
from raypref.models.families import base
from raypref.models.families.base import Family, Shape
from raypref.models.families.conditioning import Conditioning
from raypref.models.families.loading import text_encoders
from raypref.models.flow import FlowMatching
from raypref.models.hub import from_pretrained
from raypref.models.lora_config import JOINT_ATTENTION

TOKENS = 512  # the pipeline's default, so that training reads what generation reads
CHANNELS = 32  # that the autoencoder encodes to
PATCH = 2  # of these a side of what becomes one latent


@dataclass(frozen=True)
class Flux2KleinConditioning(Conditioning):
    """Hidden states of 512 tokens of Qwen3, padding included: three layers' side by side."""

    sequence_BLD: Tensor


class Flux2KleinTextEncoder:
    """The pipeline's text encoder, with its chat template.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of weights and results.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.pipeline = text_encoders(
            "Flux2KleinPipeline", model, variant=variant, device=device, dtype=dtype
        )

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> Flux2KleinConditioning:
        """What the pipeline makes of captions, [B, 512, 3 D].

        The empty caption is the chat template around nothing, which the pipeline guides away from.
        """
        sequence_BLD, _ = self.pipeline.encode_prompt(list(prompts), max_sequence_length=TOKENS)
        return Flux2KleinConditioning(sequence_BLD)


class Flux2Autoencoder(KLAutoencoder):
    """The autoencoder of a checkpoint. A latent is a patch of 2x2 of what it encodes to.

    The running mean and deviation of its batch norm are shift and scale, per channel of a patch.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of weights and results.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        from diffusers import AutoencoderKLFlux2

        self.vae = from_pretrained(
            AutoencoderKLFlux2, model, subfolder="vae", variant=variant or None, dtype=dtype
        )
        self.vae.to(device).eval().requires_grad_(False)
        norm = self.vae.bn
        self.mean_C11 = norm.running_mean[:, None, None]
        self.deviation_C11 = (norm.running_var[:, None, None] + norm.eps).sqrt()

    @torch.no_grad()
    def image_moments(self, images: Sequence[Image.Image]) -> Tensor:
        """Mean and log-variance of the latents as the denoiser sees them: patches, normalised.

        Args:
            images: RGB, all of one size divisible by 16.

        Returns:
            [B, 2, 128, H/16, W/16]: mean and log-variance of `(patch - mean) / deviation`.
        """
        posterior = self.vae.encode(self.pixels(images).to(self.vae.dtype)).latent_dist
        mean_BCHW = F.pixel_unshuffle(posterior.mean, PATCH)
        log_variance_BCHW = F.pixel_unshuffle(posterior.logvar, PATCH)
        return torch.stack(
            [
                (mean_BCHW - self.mean_C11) / self.deviation_C11,
                log_variance_BCHW - 2 * self.deviation_C11.log(),
            ],
            dim=1,
        )

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pixels as the pipeline draws them; the gradient flows, but not where they are clipped.

        Args:
            latents_BCHW: as the denoiser sees them, in any precision.

        Returns:
            RGB in [0, 1], [B, 3, 16 h, 16 w], in the precision of the weights.
        """
        patches = latents_BCHW * self.deviation_C11.to(latents_BCHW) + self.mean_C11.to(
            latents_BCHW
        )
        x_BCHW = F.pixel_shuffle(patches, PATCH).to(self.vae.dtype)
        return (self.vae.decode(x_BCHW).sample * 0.5 + 0.5).clamp(0, 1)


class Flux2KleinDenoiser(FlowMatching):
    """The transformer with its noise schedule.

    Timesteps of training are the 1000 levels without a shift, each as likely, as in diffusers'
    training script. Images are drawn on levels that are shifted by how many tokens an image has
    and in how many steps it is drawn.

    Arguments are those of `FlowMatching`.
    """

    network = "Flux2Transformer2DModel"

    def draw_timestep(self, generator: torch.Generator, shape: Shape) -> Tensor:
        """Uniform on the levels."""
        timesteps_T = self.training_timesteps(shape)
        return timesteps_T[torch.randint(len(timesteps_T), (), generator=generator)]

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """The pipeline's own at this size: [steps], descending from 1000."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        _, h, w = shape
        scheduler = self.schedule.from_config(self.schedule.config)
        shift = compute_empirical_mu(image_seq_len=h * w, num_steps=steps)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        sigmas: Tensor = scheduler.sigmas
        return sigmas[:-1].double() * self._scale

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: Flux2KleinConditioning
    ) -> Tensor:
        """The velocity, noise - x0, with the active adapter, [B, 128, H, W]."""
        _, _, h, w = x_BCHW.shape
        sequence_BLD = conditioning.sequence_BLD.to(self.dtype)
        tokens_BLC: Tensor = self.module(
            hidden_states=x_BCHW.to(self.dtype).flatten(2).transpose(1, 2),
            timestep=timesteps_B.to(self.dtype) / self._scale,
            encoder_hidden_states=sequence_BLD,
            txt_ids=_positions(1, 1, sequence_BLD.shape[1]).to(x_BCHW.device),
            img_ids=_positions(h, w, 1).to(x_BCHW.device),
        ).sample
        return tokens_BLC.transpose(1, 2).unflatten(2, (h, w))


def _positions(rows: int, columns: int, words: int) -> Tensor:
    """0, row, column and place in the text of every token, [rows * columns * words, 4]."""
    return torch.cartesian_prod(*(torch.arange(count) for count in (1, rows, columns, words)))


def _side_unit(autoencoder: Mapping[str, Any], network: Mapping[str, Any]) -> int:
    """Pixels of a token: a latent is a patch of what the autoencoder encodes to."""
    return PATCH * base.side_unit(autoencoder, network)


FAMILY = Family(
    Flux2KleinTextEncoder,
    Flux2Autoencoder,
    Flux2KleinDenoiser,
    Flux2KleinConditioning,
    pipeline="Flux2KleinPipeline",
    network=Flux2KleinDenoiser.network,
    channels=PATCH**2 * CHANNELS,
    told_by={"_class_name": "Flux2Transformer2DModel", "guidance_embeds": False},
    parts=("vae", "text_encoder", "tokenizer", "transformer", "scheduler"),
    # In a block of one stream, one layer makes queries, keys, values and what the MLP activates;
    # another joins both.
    targets=(*JOINT_ATTENTION, "attn.to_qkv_mlp_proj", "attn.to_out"),
    options={},
    side_unit=_side_unit,
)

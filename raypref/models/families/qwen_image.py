"""Qwen-Image: text and image tokens attend to each other in 60 blocks; Qwen2.5-VL encodes captions.

arXiv 2508.02324. Its autoencoder is one of video, of which an image is the first frame.
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
from raypref.models.families.base import Family, Shape
from raypref.models.families.conditioning import Conditioning
from raypref.models.families.flux import CHANNELS, PATCH, packed, unpacked
from raypref.models.families.loading import text_encoders
from raypref.models.flow import FlowMatching
from raypref.models.hub import from_pretrained
from raypref.models.lora_config import JOINT_ATTENTION

TOKENS = 512  # the pipeline's default, so that training reads what generation reads
EMPTY = " "  # what Qwen-Image's authors guide away from where nothing else is named


@dataclass(frozen=True)
class QwenImageConditioning(Conditioning):
    """Last hidden states of Qwen2.5-VL, zeros after the caption's end; 1 where there is one."""

    sequence_BLD: Tensor
    text_mask_BL: Tensor


class QwenImageTextEncoder:
    """The pipeline's text encoder, with its template, whose first tokens are dropped.

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
            "QwenImagePipeline", model, variant=variant, device=device, dtype=dtype
        )

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> QwenImageConditioning:
        """What the pipeline makes of captions, padded to 512 tokens; of the empty one, a space."""
        sequence_BLD, mask_BL = self.pipeline.encode_prompt(
            [prompt or EMPTY for prompt in prompts], max_sequence_length=TOKENS
        )
        if mask_BL is None:  # all are of one length
            mask_BL = sequence_BLD.new_ones(sequence_BLD.shape[:2])
        missing = TOKENS - mask_BL.shape[1]
        return QwenImageConditioning(
            F.pad(sequence_BLD, (0, 0, 0, missing)),
            F.pad(mask_BL.to(sequence_BLD), (0, missing)),
        )


class QwenImageAutoencoder(KLAutoencoder):
    """That of a checkpoint, on one frame. Its configuration says mean and deviation per channel.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of weights and results.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        from diffusers import AutoencoderKLQwenImage

        self.vae = from_pretrained(
            AutoencoderKLQwenImage, model, subfolder="vae", variant=variant or None, dtype=dtype
        )
        self.vae.to(device).eval().requires_grad_(False)
        mean, deviation = self.vae.config.latents_mean, self.vae.config.latents_std
        self.shift = torch.tensor(mean).to(device, dtype).view(-1, 1, 1)
        self.scale = 1 / torch.tensor(deviation).to(device, dtype).view(-1, 1, 1)

    @torch.no_grad()
    def image_moments(self, images: Sequence[Image.Image]) -> Tensor:
        """Mean and log-variance of the latents as the denoiser sees them: shifted, then scaled.

        Args:
            images: RGB, all of one size divisible by 8.

        Returns:
            [B, 2, 16, H/8, W/8]: mean and log-variance of `(latent - mean) / deviation`.
        """
        frames = self.pixels(images).to(self.vae.dtype)[:, :, None]
        posterior = self.vae.encode(frames).latent_dist
        mean, log_variance = posterior.mean[:, :, 0], posterior.logvar[:, :, 0]
        scaled = (mean - self.shift) * self.scale, log_variance + 2 * self.scale.log()
        return torch.stack(scaled, dim=1)

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pixels as the pipeline draws them; the gradient flows, but not where they are clipped.

        Args:
            latents_BCHW: as the denoiser sees them, in any precision.

        Returns:
            RGB in [0, 1], [B, 3, 8 h, 8 w], in the precision of the weights.
        """
        x_BCHW = (latents_BCHW / self.scale + self.shift).to(self.vae.dtype)
        pixels_BCHW = self.vae.decode(x_BCHW[:, :, None]).sample[:, :, 0]
        return (pixels_BCHW * 0.5 + 0.5).clamp(0, 1)


class QwenImageDenoiser(FlowMatching):
    """The transformer with its noise schedule.

    Timesteps of training are logit-normal on the 1000 levels without a shift. Images are drawn on
    levels that are shifted by how many tokens an image has, and that end at 0.02.

    Arguments are those of `FlowMatching`.
    """

    network = "QwenImageTransformer2DModel"

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """The pipeline's own at this size: [steps], descending from 1000."""
        from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift

        _, h, w = shape
        scheduler = self.schedule.from_config(self.schedule.config)
        own = scheduler.config
        shift = calculate_shift(
            (h // PATCH) * (w // PATCH),
            own.base_image_seq_len,
            own.max_image_seq_len,
            own.base_shift,
            own.max_shift,
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        sigmas: Tensor = scheduler.sigmas
        return sigmas[:-1].double() * self._scale

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: QwenImageConditioning
    ) -> Tensor:
        """The network's prediction with the active adapter, [B, 16, H, W].

        It reads as many tokens of text as the longest caption has.
        """
        count, _, h, w = x_BCHW.shape
        mask_BL = conditioning.text_mask_BL.bool()
        lengths = mask_BL.sum(dim=1).tolist()
        longest = max(lengths)
        tokens_BLC = self.module(
            hidden_states=packed(x_BCHW.to(self.dtype)),
            timestep=timesteps_B.to(self.dtype) / self._scale,
            encoder_hidden_states=conditioning.sequence_BLD[:, :longest].to(self.dtype),
            encoder_hidden_states_mask=mask_BL[:, :longest] if min(lengths) < longest else None,
            img_shapes=[[(1, h // PATCH, w // PATCH)]] * count,
        ).sample
        return unpacked(tokens_BLC, (h, w))

    def rescaled(self, guided_BCHW: Tensor, captioned_BCHW: Tensor) -> Tensor:
        """A guided prediction, each token as long as without guidance, as the pipeline has it."""
        guided_BLC, captioned_BLC = packed(guided_BCHW), packed(captioned_BCHW)
        ratio_BL1 = captioned_BLC.norm(dim=2, keepdim=True) / guided_BLC.norm(dim=2, keepdim=True)
        height, width = guided_BCHW.shape[2:]
        return unpacked(guided_BLC * ratio_BL1, (height, width))


def _arguments(prompts: list[str], guidance: float, side: int) -> dict[str, Any]:
    """Arguments of the pipeline's call; without a negative prompt it applies no guidance."""
    away = {"negative_prompt": [EMPTY] * len(prompts)} if guidance > 1 else {}
    size = {"height": side, "width": side}
    return {"prompt": prompts, "true_cfg_scale": guidance, **away, **size}


def _side_unit(autoencoder: Mapping[str, Any], network: Mapping[str, Any]) -> int:
    """Pixels of a token: latents halve an image's side once per level of the autoencoder."""
    return int(2 ** len(autoencoder["temperal_downsample"]) * network["patch_size"])


FAMILY = Family(
    QwenImageTextEncoder,
    QwenImageAutoencoder,
    QwenImageDenoiser,
    QwenImageConditioning,
    pipeline="QwenImagePipeline",
    network=QwenImageDenoiser.network,
    channels=PATCH**2 * CHANNELS,
    # Diffusers' transformer has no layer for a guidance scale.
    told_by={"_class_name": "QwenImageTransformer2DModel", "guidance_embeds": False},
    parts=("vae", "text_encoder", "tokenizer", "transformer", "scheduler"),
    targets=JOINT_ATTENTION,
    options={},
    arguments=_arguments,
    side_unit=_side_unit,
)

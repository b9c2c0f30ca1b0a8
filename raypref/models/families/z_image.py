"""Z-Image and Z-Image-Turbo: one stream of image and text tokens; Qwen3 encodes captions.

arXiv 2511.22699. Turbo is distilled for a few steps without guidance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raypref.models.autoencoder import KLAutoencoder
from raypref.models.families import base
from raypref.models.families.base import Family, Shape, text_to_image
from raypref.models.families.conditioning import Conditioning
from raypref.models.families.loading import text_encoders
from raypref.models.flow import FlowMatching
from raypref.models.lora_config import ATTENTION

TOKENS = 512  # the pipeline's default, so that training reads what generation reads
PATCH = 2  # latents a side of what becomes one token


@dataclass(frozen=True)
class ZImageConditioning(Conditioning):
    """Penultimate hidden states of Qwen3, zeros after the caption's end; 1 where there is one."""

    sequence_BLD: Tensor
    text_mask_BL: Tensor


class ZImageTextEncoder:
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
            "ZImagePipeline", model, variant=variant, device=device, dtype=dtype
        )

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> ZImageConditioning:
        """What the pipeline makes of captions, padded to 512 tokens.

        The empty caption is the chat template around nothing, which the pipeline guides away from.
        """
        texts, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=TOKENS
        )
        sequence_BLD = texts[0].new_zeros(len(texts), TOKENS, texts[0].shape[1])
        mask_BL = texts[0].new_zeros(len(texts), TOKENS)
        for i, text in enumerate(texts):
            sequence_BLD[i, : len(text)] = text
            mask_BL[i, : len(text)] = 1
        return ZImageConditioning(sequence_BLD, mask_BL)


class ZImageDenoiser(FlowMatching):
    """The transformer with its noise schedule.

    Timesteps of training are logit-normal on the scheduler's levels, as Z-Image was trained. These
    have the shift of the checkpoint: 6 in Z-Image, 3 in Z-Image-Turbo.

    Arguments are those of `FlowMatching`.
    """

    network = "ZImageTransformer2DModel"

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """The pipeline's own: [steps], descending from 1000.

        The size counts where the checkpoint's scheduler says `use_dynamic_shifting`.
        """
        from diffusers.pipelines.z_image import pipeline_z_image as pipeline

        _, h, w = shape
        scheduler = self.schedule.from_config(self.schedule.config)
        own = scheduler.config
        shift = pipeline.calculate_shift(
            (h // PATCH) * (w // PATCH),
            own.base_image_seq_len,
            own.max_image_seq_len,
            own.base_shift,
            own.max_shift,
        )
        sigmas = pipeline.get_default_z_image_sigmas(steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=shift)
        return scheduler.sigmas[:-1].double() * self._scale

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: ZImageConditioning
    ) -> Tensor:
        """The velocity, noise - x0, with the active adapter, [B, 16, H, W].

        The network's time is 1 without noise, and it predicts x0 - noise.
        """
        lengths = conditioning.text_mask_BL.bool().sum(dim=1).tolist()
        states = conditioning.sequence_BLD.to(self.dtype).unbind()
        predicted = self.module(
            list(x_BCHW.to(self.dtype)[:, :, None].unbind()),  # one frame each
            (self._scale - timesteps_B.float()) / self._scale,
            [text[:length] for text, length in zip(states, lengths, strict=True)],
        ).sample
        return -torch.stack(predicted).squeeze(2)


def _arguments(prompts: list[str], guidance: float, side: int) -> dict[str, Any]:
    """Arguments of the pipeline's call, whose guidance scale is one less: 0 is none there."""
    return text_to_image(prompts, max(0.0, guidance - 1), side)


def _side_unit(autoencoder: Mapping[str, Any], network: Mapping[str, Any]) -> int:
    """Pixels of a token, whose side the network's configuration has in a list."""
    return PATCH * base.side_unit(autoencoder, network)


FAMILY = Family(
    ZImageTextEncoder,
    KLAutoencoder,
    ZImageDenoiser,
    ZImageConditioning,
    pipeline="ZImagePipeline",
    network=ZImageDenoiser.network,
    channels=16,
    told_by={"_class_name": "ZImageTransformer2DModel"},
    parts=("vae", "text_encoder", "tokenizer", "transformer", "scheduler"),
    targets=ATTENTION,
    options={},
    arguments=_arguments,
    side_unit=_side_unit,
)

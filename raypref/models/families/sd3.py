"""Stable Diffusion 3.5 Medium: a transformer predicts velocity on latents of 16 channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raypref.core.config import InputError
from raypref.models.autoencoder import KLAutoencoder
from raypref.models.families.base import Family, Shape
from raypref.models.families.conditioning import Conditioning
from raypref.models.families.loading import text_encoders
from raypref.models.flow import FlowMatching
from raypref.models.lora_config import JOINT_ATTENTION

T5_TOKENS = 256  # the pipeline's default, so that training reads what generation reads


@dataclass(frozen=True)
class SD3Conditioning(Conditioning):
    """Hidden states of 77 CLIP tokens and 256 (`t5_tokens`) of T5; what both CLIP encoders pool."""

    sequence_BLD: Tensor
    pooled_BP: Tensor


class SD3TextEncoder:
    """The pipeline's three text encoders.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where they run.
        dtype: of weights and results.
        t5_tokens: of a caption, padded or cut to so many.
    """

    def __init__(
        self,
        model: str,
        *,
        variant: str,
        device: torch.device,
        dtype: torch.dtype,
        t5_tokens: int = T5_TOKENS,
    ) -> None:
        self.t5_tokens = t5_tokens
        self.pipeline = text_encoders(
            "StableDiffusion3Pipeline", model, variant=variant, device=device, dtype=dtype
        )

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> SD3Conditioning:
        """What the pipeline makes of captions."""
        sequence_BLD, _, pooled_BP, _ = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.t5_tokens,
        )
        return SD3Conditioning(sequence_BLD, pooled_BP)


class SD3Denoiser(FlowMatching):
    """The transformer with its noise schedule.

    Arguments are those of `FlowMatching`.
    """

    network = "SD3Transformer2DModel"

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(model, variant=variant, device=device, dtype=dtype)
        if self.schedule.config.use_dynamic_shifting:
            raise InputError(
                f"base.model: '{model}' shifts its noise levels by image size; the sd35m family "
                "trains with one shift for all"
            )

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """The pipeline's own: [steps], descending from 1000."""
        del shape
        scheduler = self.schedule.from_config(self.schedule.config)
        scheduler.set_timesteps(steps)
        return scheduler.sigmas[:-1].double() * self._scale

    def predict(self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: SD3Conditioning) -> Tensor:
        """The network's prediction with the active adapter, [B, 16, H, W]."""
        return self.module(
            x_BCHW.to(self.dtype),
            encoder_hidden_states=conditioning.sequence_BLD.to(self.dtype),
            pooled_projections=conditioning.pooled_BP.to(self.dtype),
            timestep=timesteps_B,
        ).sample


FAMILY = Family(
    SD3TextEncoder,
    KLAutoencoder,
    SD3Denoiser,
    SD3Conditioning,
    pipeline="StableDiffusion3Pipeline",
    network=SD3Denoiser.network,
    channels=16,
    parts=(
        "vae",
        *(f"{kind}{n}" for n in ("", "_2", "_3") for kind in ("text_encoder", "tokenizer")),
        "transformer",
        "scheduler",
    ),
    targets=JOINT_ATTENTION,
    options={},
)

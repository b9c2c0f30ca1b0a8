"""FLUX.1, dev and schnell: a transformer predicts velocity on latents packed by 2x2.

Dev is distilled for guidance: a scale is one of its inputs. Trainings and their rollouts give it
3.5, the default of its pipeline and of diffusers' training script; images are drawn with
`evaluate.guidance`. Schnell has no such input, and is distilled for four steps or fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raypref.models.autoencoder import KLAutoencoder
from raypref.models.families import base
from raypref.models.families.base import Family, Shape
from raypref.models.families.conditioning import Conditioning
from raypref.models.families.loading import text_encoders
from raypref.models.flow import FlowMatching
from raypref.models.lora_config import JOINT_ATTENTION

T5_TOKENS = 512  # the pipeline's default, so that training reads what generation reads
GUIDANCE = 3.5
CHANNELS = 16  # of a latent
PATCH = 2  # latents a side of what becomes one token


@dataclass(frozen=True)
class FluxConditioning(Conditioning):
    """Hidden states of 512 (`t5_tokens`) tokens of T5; what CLIP pools."""

    sequence_BLD: Tensor
    pooled_BP: Tensor


class FluxTextEncoder:
    """The pipeline's two text encoders.

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
            "FluxPipeline", model, variant=variant, device=device, dtype=dtype
        )

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> FluxConditioning:
        """What the pipeline makes of captions."""
        sequence_BLD, pooled_BP, _ = self.pipeline.encode_prompt(
            list(prompts), max_sequence_length=self.t5_tokens
        )
        return FluxConditioning(sequence_BLD, pooled_BP)


class FluxDenoiser(FlowMatching):
    """The transformer with its noise schedule.

    Timesteps of training are the 1000 levels without a shift, each as likely, as in diffusers'
    training script. Images are drawn on levels that are shifted by how many tokens an image has,
    where the checkpoint's scheduler says so (dev).

    Arguments are those of `FlowMatching`.
    """

    network = "FluxTransformer2DModel"
    guidance = GUIDANCE

    def draw_timestep(self, generator: torch.Generator, shape: Shape) -> Tensor:
        """Uniform on the levels."""
        timesteps_T = self.training_timesteps(shape)
        return timesteps_T[torch.randint(len(timesteps_T), (), generator=generator)]

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """The pipeline's own at this size: [steps], descending from 1000."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

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
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: FluxConditioning
    ) -> Tensor:
        """The network's prediction with the active adapter, [B, 16, H, W]."""
        around_BKHW = conditioning.surroundings_BKHW
        count, _, h, w = x_BCHW.shape
        channels = x_BCHW.to(self.dtype)
        if around_BKHW is not None:
            channels = torch.cat([channels, around_BKHW.to(self.dtype)], dim=1)
        sequence_BLD = conditioning.sequence_BLD.to(self.dtype)
        guided = self.module.config.guidance_embeds
        tokens_BLC = self.module(
            hidden_states=packed(channels),
            timestep=timesteps_B.to(self.dtype) / self._scale,
            guidance=torch.full([count], self.guidance, device=x_BCHW.device) if guided else None,
            pooled_projections=conditioning.pooled_BP.to(self.dtype),
            encoder_hidden_states=sequence_BLD,
            txt_ids=sequence_BLD.new_zeros(sequence_BLD.shape[1], 3),
            img_ids=_positions(h // PATCH, w // PATCH).to(sequence_BLD),
        ).sample
        return unpacked(tokens_BLC, (h, w))


def packed(x_BCHW: Tensor) -> Tensor:
    """Squares of 2x2 latents as tokens, row by row, [B, H/2 * W/2, 4 C]."""
    return F.pixel_unshuffle(x_BCHW, PATCH).flatten(2).transpose(1, 2)


def unpacked(tokens_BLC: Tensor, size: tuple[int, int]) -> Tensor:
    """Tokens as latents of this height and width, [B, C / 4, H, W]."""
    rows = size[0] // PATCH, size[1] // PATCH
    return F.pixel_shuffle(tokens_BLC.transpose(1, 2).unflatten(2, rows), PATCH)


def _positions(rows: int, columns: int) -> Tensor:
    """0, row and column of every token, [rows * columns, 3]."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))


def side_unit(autoencoder: Mapping[str, Any], network: Mapping[str, Any]) -> int:
    """Pixels of a token: the network's configuration does not say that latents are packed."""
    return PATCH * base.side_unit(autoencoder, network)


PARTS = (
    "vae",
    *(f"{kind}{n}" for n in ("", "_2") for kind in ("text_encoder", "tokenizer")),
    "transformer",
    "scheduler",
)
FAMILY = Family(
    FluxTextEncoder,
    KLAutoencoder,
    FluxDenoiser,
    FluxConditioning,
    pipeline="FluxPipeline",
    network=FluxDenoiser.network,
    channels=PATCH**2 * CHANNELS,
    parts=PARTS,
    targets=JOINT_ATTENTION,
    options={},
    side_unit=side_unit,
)

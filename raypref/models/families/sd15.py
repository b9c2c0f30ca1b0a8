"""Stable Diffusion 1.5: a UNet predicts epsilon on 4-channel latents; one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raypref.core.config import InputError
from raypref.models.autoencoder import KLAutoencoder
from raypref.models.diffusion import Diffusion
from raypref.models.families.base import Family, Shape
from raypref.models.families.conditioning import Conditioning
from raypref.models.hub import from_pretrained
from raypref.models.lora_config import ATTENTION
from raypref.models.solvers import DPMSolverPP2M


@dataclass(frozen=True)
class SD15Conditioning(Conditioning):
    """Hidden states of the caption's 77 tokens."""

    sequence_BLD: Tensor


class SD15TextEncoder:
    """CLIP's text encoder.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where it runs.
        dtype: of weights and results.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        from transformers import CLIPTextModel, CLIPTokenizer

        self.text_encoder = from_pretrained(
            CLIPTextModel, model, subfolder="text_encoder", variant=variant or None, dtype=dtype
        )
        self.text_encoder.to(device=device)
        self.text_encoder.eval().requires_grad_(False)
        self.tokenizer = from_pretrained(CLIPTokenizer, model, subfolder="tokenizer")
        self.device = device

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> SD15Conditioning:
        """Last hidden states of the captions, cut or padded to 77 tokens."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return SD15Conditioning(self.text_encoder(tokens.input_ids.to(self.device))[0])


class SD15Denoiser(Diffusion):
    """The UNet with its noise schedule.

    Arguments are those of `Diffusion`.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(model, variant=variant, device=device, dtype=dtype)
        if self.schedule.config.prediction_type != "epsilon":
            raise InputError(
                f"base.model: '{model}' predicts {self.schedule.config.prediction_type}; the sd15 "
                "family trains epsilon prediction"
            )

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """Evenly spaced from T-1 down, [steps]; diffusers calls this spacing trailing."""
        count = len(self.training_timesteps(shape))
        return count - 1 - torch.arange(steps) * (count // steps)

    def solver(self, grid_nB: Tensor) -> DPMSolverPP2M:
        """DPM-Solver++ of second order, as the released code samples."""
        return DPMSolverPP2M(self.schedule.alphas_cumprod, grid_nB)

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: SD15Conditioning
    ) -> Tensor:
        """The network's prediction with the active adapter, [B, 4, H, W]."""
        sequence_BLD = conditioning.sequence_BLD.to(self.dtype)
        return self.module(x_BCHW.to(self.dtype), timesteps_B, sequence_BLD).sample


FAMILY = Family(
    SD15TextEncoder,
    KLAutoencoder,
    SD15Denoiser,
    SD15Conditioning,
    pipeline="StableDiffusionPipeline",
    network=SD15Denoiser.network,
    channels=4,
    told_by={"addition_embed_type": None},
    parts=("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
    targets=ATTENTION,
    # The checker would replace images it dislikes by black ones and so distort every score.
    options={"safety_checker": None, "requires_safety_checker": False},
)

"""Stable Diffusion XL: a UNet on 4-channel latents reads two CLIP encoders and the image's size."""

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
from raypref.models.families.loading import text_encoders
from raypref.models.lora_config import ATTENTION
from raypref.models.solvers import DDIM

PIXELS = 8  # of a latent's side


@dataclass(frozen=True)
class SDXLConditioning(Conditioning):
    """Penultimate hidden states of 77 tokens, both encoders' side by side; the second's pooled."""

    sequence_BLD: Tensor
    pooled_BP: Tensor


class SDXLTextEncoder:
    """The pipeline's two text encoders.

    Args:
        model: of `hub.model_folder`, in diffusers layout.
        variant: file variant such as "fp16"; empty for the plain files.
        device: where they run.
        dtype: of weights and results.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.pipeline = text_encoders(
            "StableDiffusionXLPipeline",
            model,
            network="unet",
            variant=variant,
            device=device,
            dtype=dtype,
            add_watermarker=False,
        )

    @torch.no_grad()
    def text_embeddings(self, prompts: Sequence[str]) -> SDXLConditioning:
        """What the pipeline makes of captions.

        The empty caption is what the pipeline guides away from: zeros where the checkpoint says
        `force_zeros_for_empty_prompt`, as SDXL's does.
        """
        sequence_BLD, _, pooled_BP, _ = self.pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False
        )
        if self.pipeline.config.force_zeros_for_empty_prompt:
            empty = [not prompt for prompt in prompts]
            sequence_BLD[empty] = 0
            pooled_BP[empty] = 0
        return SDXLConditioning(sequence_BLD, pooled_BP)


class SDXLAutoencoder(KLAutoencoder):
    """SDXL's autoencoder. Its activations overflow float16: then it works in float32.

    So does the pipeline, where the autoencoder's configuration says `force_upcast`. Arguments are
    those of `KLAutoencoder`.
    """

    upcast: tuple[torch.dtype, ...] = (torch.float16,)  # precisions in which it works in float32

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(model, variant=variant, device=device, dtype=dtype)
        if self.vae.config.latents_mean is not None:
            raise InputError(
                f"base.model: '{model}' normalises latents by a mean per channel; the sdxl family "
                "scales them by one number"
            )
        if dtype in self.upcast and self.vae.config.force_upcast:
            self.vae.float()


class SDXLDenoiser(Diffusion):
    """The UNet with its noise schedule; it predicts epsilon, or v where the scheduler says so.

    Arguments are those of `Diffusion`.
    """

    def __init__(
        self, model: str, *, variant: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__(model, variant=variant, device=device, dtype=dtype)
        predicted = self.schedule.config.prediction_type
        if predicted not in ("epsilon", "v_prediction"):
            raise InputError(
                f"base.model: '{model}' predicts {predicted}; the sdxl family trains epsilon and "
                "v_prediction"
            )

    def sampling_timesteps(self, steps: int, shape: Shape) -> Tensor:
        """The pipeline's own, as the scheduler's configuration spaces them, [steps]."""
        last = len(self.training_timesteps(shape)) - 1
        scheduler = self.schedule.from_config(self.schedule.config)
        scheduler.set_timesteps(steps)
        timesteps_n: Tensor = scheduler.timesteps
        return timesteps_n.clamp(max=last)  # an offset may lead beyond

    def solver(self, grid_nB: Tensor) -> DDIM:
        """Euler's method, as the pipeline's `EulerDiscreteScheduler` steps."""
        return DDIM(self.schedule.alphas_cumprod, grid_nB, velocity=self.velocity)

    def predict(
        self, x_BCHW: Tensor, timesteps_B: Tensor, conditioning: SDXLConditioning
    ) -> Tensor:
        """The network's prediction with the active adapter, [B, 4, H, W].

        Original and target size are those of the image, which is not cropped, as by default in the
        pipeline.
        """
        count, _, h, w = x_BCHW.shape
        size = (PIXELS * h, PIXELS * w)
        ids_B6 = torch.tensor([[*size, 0, 0, *size]], device=x_BCHW.device, dtype=self.dtype)
        added = {
            "text_embeds": conditioning.pooled_BP.to(self.dtype),
            "time_ids": ids_B6.expand(count, -1),
        }
        sequence_BLD = conditioning.sequence_BLD.to(self.dtype)
        x_BCHW = x_BCHW.to(self.dtype)
        return self.module(x_BCHW, timesteps_B, sequence_BLD, added_cond_kwargs=added).sample


FAMILY = Family(
    SDXLTextEncoder,
    SDXLAutoencoder,
    SDXLDenoiser,
    SDXLConditioning,
    pipeline="StableDiffusionXLPipeline",
    network=SDXLDenoiser.network,
    channels=4,
    told_by={"addition_embed_type": "text_time"},
    parts=(
        "vae",
        *(f"{kind}{n}" for n in ("", "_2") for kind in ("text_encoder", "tokenizer")),
        "unet",
        "scheduler",
    ),
    targets=ATTENTION,
    options={"add_watermarker": False},  # a watermark would change every score
)

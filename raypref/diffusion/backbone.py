"""What training and generation need of a model family, and the families there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from raypref.config import Location, Section, setting
from raypref.diffusion import network, sd15
from raypref.hub import model_folder

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
DType = Literal["float64", "float32", "bfloat16", "float16"]


class BackboneConfig(Section):
    """The model that is aligned."""

    family: Literal["sd15"] = setting("sd15", "model family")
    model: Location = setting(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "hub id or folder in diffusers layout"
    )
    network: Location = setting(
        "",
        "other weights for its UNet or transformer: hub id or folder that holds unet/ or "
        "transformer/, such as mhdang/dpo-sd1.5-text2image-v1",
    )
    variant: str = setting("", "file variant on the hub, such as fp16")
    dtype: DType = setting("float32", "precision of the frozen weights")

    def folder(self) -> str:
        """What to hand to `from_pretrained`."""
        return model_folder(self.model, key="base.model", probe="model_index.json")


class Encoder(Protocol):
    """Images and captions to what the denoiser reads. Run once per pair; results are cached."""

    def image_moments(self, images: Sequence[Image.Image]) -> Tensor:
        """Mean and log-variance of the scaled latents, [B, 2, C, h, w]."""

    def text_embeddings(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings, [B, L, D]."""


class Denoiser(Protocol):
    """The network that is trained, with its noise process."""

    module: nn.Module
    component: str  # the part of the pipeline it is, `unet` or `transformer`
    device: torch.device
    dtype: torch.dtype
    alphas_cumprod_T: Tensor

    @property
    def train_steps(self) -> int:
        """Length of the training schedule."""

    def draw_timestep(self, generator: torch.Generator) -> int:
        """One timestep from the family's training distribution."""

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noise clean latents to the given timesteps."""

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        """What the network should predict there."""

    def predict(self, x_BCHW: Tensor, timesteps_B: Tensor, prompts_BLD: Tensor) -> Tensor:
        """What it predicts, with the active adapter."""


@dataclass(frozen=True)
class Family:
    """The classes of one model family."""

    encoder: type[Any]
    denoiser: type[Any]
    pipeline: Any  # class of the diffusers pipeline


FAMILIES = {"sd15": Family(sd15.SD15Encoder, sd15.SD15Denoiser, sd15.PIPELINE)}


def load_encoder(config: BackboneConfig, *, device: torch.device) -> Encoder:
    """Load the VAE and the text encoder."""
    return FAMILIES[config.family].encoder(
        config.folder(), variant=config.variant, device=device, dtype=DTYPES[config.dtype]
    )


def load_denoiser(config: BackboneConfig, *, device: torch.device) -> Denoiser:
    """Load the network that is trained."""
    denoiser: Denoiser = FAMILIES[config.family].denoiser(
        config.folder(), variant=config.variant, device=device, dtype=DTYPES[config.dtype]
    )
    if config.network:
        network.replace(denoiser.module, config.network, component=denoiser.component)
    return denoiser


def load_pipeline(config: BackboneConfig, *, device: torch.device) -> Any:
    """Load the whole text-to-image pipeline, quiet, without the safety checker.

    The checker would replace images it dislikes by black ones and so distort every score.
    """
    pipeline = FAMILIES[config.family].pipeline.from_pretrained(
        config.folder(),
        variant=config.variant or None,
        dtype=DTYPES[config.dtype],
        safety_checker=None,
        requires_safety_checker=False,
    )
    if config.network:
        component = FAMILIES[config.family].denoiser.component
        network.replace(pipeline.components[component], config.network, component=component)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def pick_device(num_gpus: float) -> torch.device:
    """The GPU when the stage asks for one and there is one, else the CPU."""
    return torch.device("cuda" if num_gpus and torch.cuda.is_available() else "cpu")

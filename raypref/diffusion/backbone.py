"""What training and generation need of a model family, and the families there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from raypref.config import Location, Section, setting
from raypref.diffusion import network, sd3, sd15
from raypref.diffusion.prompts import Prompts
from raypref.diffusion.samplers import Solver
from raypref.hub import model_folder

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FamilyName = Literal["sd15", "sd35m"]
DType = Literal["float64", "float32", "bfloat16", "float16"]


class BackboneConfig(Section):
    """The model that is aligned."""

    family: FamilyName = setting("sd15", "model family: Stable Diffusion 1.5 or 3.5 Medium")
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

    def text_embeddings(self, prompts: Sequence[str]) -> Prompts:
        """Captions as the denoiser reads them."""


class Denoiser(Protocol):
    """The network that is trained, with its noise process.

    A timestep is a number of the family's own: an index of the training schedule, or a noise level
    in thousandths. Larger is noisier.
    """

    module: nn.Module
    component: str  # the part of the pipeline it is, `unet` or `transformer`
    device: torch.device
    dtype: torch.dtype
    timesteps_T: Tensor  # the training schedule, ascending

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """One timestep from the family's training distribution, a scalar on the CPU."""

    def sampling_timesteps(self, steps: int) -> Tensor:
        """The timesteps of drawing an image in so many steps, descending, [steps]."""

    def solver(self, grid_nB: Tensor) -> Solver:
        """The method the policy is sampled with, on a grid of timesteps, a column a sample."""

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Noise clean latents to the given timesteps."""

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor) -> Tensor:
        """What the network should predict there."""

    def predict(self, x_BCHW: Tensor, timesteps_B: Tensor, prompts: Prompts) -> Tensor:
        """What it predicts, with the active adapter."""


@dataclass(frozen=True)
class Family:
    """The classes of one model family."""

    encoder: type[Any]
    denoiser: type[Any]
    pipeline: Any  # class of the diffusers pipeline
    parts: tuple[str, ...]  # what a checkpoint must have of the pipeline
    options: Mapping[str, Any]  # of the pipeline's `from_pretrained`


FAMILIES = {
    "sd15": Family(
        sd15.SD15Encoder,
        sd15.SD15Denoiser,
        sd15.PIPELINE,
        parts=("vae", "text_encoder", "tokenizer", "unet", "scheduler"),
        # The checker would replace images it dislikes by black ones and so distort every score.
        options={"safety_checker": None, "requires_safety_checker": False},
    ),
    "sd35m": Family(
        sd3.SD3Encoder,
        sd3.SD3Denoiser,
        sd3.PIPELINE,
        parts=(
            "vae",
            *(f"{kind}{n}" for n in ("", "_2", "_3") for kind in ("text_encoder", "tokenizer")),
            "transformer",
            "scheduler",
        ),
        options={},
    ),
}


def load_encoder(config: BackboneConfig, *, device: torch.device) -> Encoder:
    """Load the VAE and the text encoders."""
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
    """Load the whole text-to-image pipeline, quiet, without a safety checker."""
    family = FAMILIES[config.family]
    pipeline = family.pipeline.from_pretrained(
        config.folder(),
        variant=config.variant or None,
        dtype=DTYPES[config.dtype],
        **family.options,
    )
    if config.network:
        component = family.denoiser.component
        network.replace(pipeline.components[component], config.network, component=component)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def pick_device(num_gpus: float) -> torch.device:
    """The GPU when the stage asks for one and there is one, else the CPU."""
    return torch.device("cuda" if num_gpus and torch.cuda.is_available() else "cpu")

"""What training and generation need of a model family, and the families there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raypref.config import Location, Section, setting
from raypref.device import DType, torch_dtype
from raypref.hub import model_folder

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from raypref.diffusion.prompts import Prompts
    from raypref.diffusion.samplers import Solver

FamilyName = Literal["sd15", "sd35m"]
# The module of each holds `FAMILY`. Diffusers is imported when a model is loaded: it takes seconds.
MODULES: dict[FamilyName, str] = {
    "sd15": "raypref.diffusion.families.sd15",
    "sd35m": "raypref.diffusion.families.sd3",
}


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
    pipeline: str  # name of the diffusers pipeline's class
    parts: tuple[str, ...]  # what a checkpoint must have of the pipeline
    options: Mapping[str, Any]  # of the pipeline's `from_pretrained`


def family(name: FamilyName) -> Family:
    """A family by its name."""
    found: Family = import_module(MODULES[name]).FAMILY
    return found


def load_encoder(config: BackboneConfig, *, device: torch.device) -> Encoder:
    """Load the VAE and the text encoders."""
    return family(config.family).encoder(
        config.folder(), variant=config.variant, device=device, dtype=torch_dtype(config.dtype)
    )


def load_denoiser(config: BackboneConfig, *, device: torch.device) -> Denoiser:
    """Load the network that is trained."""
    denoiser: Denoiser = family(config.family).denoiser(
        config.folder(), variant=config.variant, device=device, dtype=torch_dtype(config.dtype)
    )
    if config.network:
        from raypref.diffusion import network

        network.replace(denoiser.module, config.network, component=denoiser.component)
    return denoiser


def load_pipeline(config: BackboneConfig, *, device: torch.device) -> Any:
    """Load the whole text-to-image pipeline, quiet, without a safety checker."""
    import diffusers

    own = family(config.family)
    pipeline = getattr(diffusers, own.pipeline).from_pretrained(
        config.folder(),
        variant=config.variant or None,
        dtype=torch_dtype(config.dtype),
        **own.options,
    )
    if config.network:
        from raypref.diffusion import network

        component = own.denoiser.component
        network.replace(pipeline.components[component], config.network, component=component)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)

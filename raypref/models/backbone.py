"""The base model: its settings, and its parts loaded as the family says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pydantic import model_validator

from raypref.core.config import InputError, Location, Section, setting
from raypref.core.device import DType, OtherDType, Quantisation, torch_dtype
from raypref.models.families.registry import FAMILIES, READ_BY_T5, FamilyName, family
from raypref.models.hub import from_pretrained, model_folder

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from raypref.models.families.base import (
        Autoencoder,
        Denoiser,
        InpaintingAutoencoder,
        TextEncoder,
    )
    from raypref.models.families.conditioning import Conditioning


class BackboneConfig(Section):
    """The model that is aligned."""

    family: FamilyName = setting("sd15", f"model family: {', '.join(FAMILIES)}")
    model: Location = setting(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "hub id (OWNER/REPO or OWNER/REPO@REVISION) or folder in diffusers layout; or a whole "
        "checkpoint of SD-1.5 or SDXL in one .safetensors file",
    )
    config: Location = setting(
        "",
        "what a checkpoint in one file does not hold, configuration and tokenizers: hub id or "
        "folder in diffusers layout; empty: the family's published repository",
        later=True,
    )
    network: Location = setting(
        "",
        "other weights for its UNet or transformer: hub id or folder that holds unet/ or "
        "transformer/, such as mhdang/dpo-sd1.5-text2image-v1",
    )
    variant: str = setting("", "file variant on the hub, such as fp16")
    dtype: DType = setting("float32", "precision of the frozen weights")
    quantise: Quantisation = setting(
        "",
        "store the network's frozen linear layers in fewer bits, under a LoRA: int8, or nf4 (4 "
        "bits, by bitsandbytes); trainings and images use the same network; empty: no",
        later=True,
    )

    @model_validator(mode="after")
    def _config_is_of_one_file(self) -> BackboneConfig:
        if self.config and not self.in_one_file:
            raise InputError(
                f"base.config='{self.config}': it is read beside a checkpoint in one .safetensors "
                f"file alone, and base.model='{self.model}' has its own; leave it empty"
            )
        return self

    @model_validator(mode="after")
    def _not_quantised_before(self) -> BackboneConfig:
        for key in ("model", "network"):
            if (ref := getattr(self, key)).lower().endswith(".gguf"):
                raise InputError(
                    f"base.{key}='{ref}': weights in GGUF files are quantised; take the model with "
                    "16 or 32 bits, and base.quantise=int8 or nf4"
                )
        return self

    @property
    def in_one_file(self) -> bool:
        """Whether the model is a checkpoint in one file."""
        return self.model.endswith(".safetensors")

    def folder(self) -> str:
        """What to hand to `hub.from_pretrained`."""
        if self.in_one_file:
            from raypref.models import single_file

            return single_file.converted(self.model, name=self.family, config=self.config)
        return model_folder(self.model, key="base.model", probe="model_index.json")

    def in_precision(self, dtype: OtherDType) -> BackboneConfig:
        """The same model with weights of another precision; empty: of its own."""
        return self.model_copy(update={"dtype": dtype}) if dtype else self

    @property
    def unquantised(self) -> BackboneConfig:
        """The same model with all weights as precise as they were published."""
        return self.model_copy(update={"quantise": ""})


@dataclass(frozen=True)
class Encoder:
    """Images and captions to what the denoiser reads. Run once per pair; results are stored."""

    text: TextEncoder
    autoencoder: Autoencoder

    def image_moments(self, images: Sequence[Image.Image]) -> Tensor:
        """Mean and log-variance of the scaled latents, [B, 2, C, h, w]."""
        return self.autoencoder.image_moments(images)

    def surroundings(self, images: Sequence[Image.Image], masks: Sequence[Image.Image]) -> Tensor:
        """What a family that inpaints reads beside the noisy latents, [B, K, h, w]."""
        return cast("InpaintingAutoencoder", self.autoencoder).surroundings(images, masks)

    def text_embeddings(self, prompts: Sequence[str]) -> Conditioning:
        """Captions as the denoiser reads them."""
        return self.text.text_embeddings(prompts)


def load_encoder(
    config: BackboneConfig,
    *,
    device: torch.device,
    vae_dtype: OtherDType = "",
    t5_tokens: int = 0,
) -> Encoder:
    """Load the autoencoder and the text encoders.

    Args:
        config: the base model.
        device: where they run.
        vae_dtype: precision of the autoencoder; empty: the base's.
        t5_tokens: of a caption, for T5; 0: as many as the family's pipeline takes. Nothing for a
            family without a T5.
    """
    own = {"t5_tokens": t5_tokens} if t5_tokens and config.family in READ_BY_T5 else {}
    text: TextEncoder = _loaded(family(config.family).text_encoder, config, device, **own)
    return Encoder(text, load_autoencoder(config.in_precision(vae_dtype), device=device))


def load_autoencoder(config: BackboneConfig, *, device: torch.device) -> Autoencoder:
    """Load the autoencoder alone, as to decode latents with a gradient."""
    autoencoder: Autoencoder = _loaded(family(config.family).autoencoder, config, device)
    return autoencoder


def load_denoiser(config: BackboneConfig, *, device: torch.device) -> Denoiser:
    """Load the network that is trained; one that is quantised goes to the device layer by layer."""
    import torch

    first = torch.device("cpu") if config.quantise else device
    denoiser: Denoiser = _loaded(family(config.family).denoiser, config, first)
    if config.network:
        from raypref.models import network

        network.replace(denoiser.module, config.network, component=denoiser.component)
    if config.quantise:
        from raypref.models.quantised import quantise

        quantise(denoiser.module, config.quantise, device=device)
        denoiser.module.to(device)
        denoiser.device = device
    return denoiser


def _loaded(kind: type[Any], config: BackboneConfig, device: torch.device, **own: Any) -> Any:
    """One of a family's three classes, with the base's weights."""
    dtype = torch_dtype(config.dtype)
    return kind(config.folder(), variant=config.variant, device=device, dtype=dtype, **own)


def load_pipeline(
    config: BackboneConfig, *, device: torch.device, vae_dtype: OtherDType = ""
) -> Any:
    """Load the whole text-to-image pipeline, quiet, without a safety checker.

    Args:
        config: the base model.
        device: where it runs.
        vae_dtype: precision of its autoencoder; empty: the base's.
    """
    import diffusers

    own = family(config.family)
    dtype: Any = torch_dtype(config.dtype)
    apart = bool(vae_dtype) and vae_dtype != config.dtype
    pipeline = from_pretrained(
        getattr(diffusers, own.pipeline),
        config.folder(),
        variant=config.variant or None,
        # Cast after loading, the autoencoder would keep the rounding of a lower precision.
        dtype={"default": dtype, "vae": torch_dtype(vae_dtype or config.dtype)} if apart else dtype,
        **own.options,
    )
    if apart:
        from raypref.models.autoencoder import work_among

        work_among(pipeline.vae, dtype)
    if config.network:
        from raypref.models import network

        trained = pipeline.components[own.component]
        network.replace(trained, config.network, component=own.component)
    if config.quantise:
        from raypref.models.quantised import quantise

        quantise(pipeline.components[own.component], config.quantise, device=device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)

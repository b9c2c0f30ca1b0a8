"""Smallest checkpoints in hub layout, with random weights: for tests of what runs, not of how well.

They have the structure of the published models (files, keys, schedules) and cost next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
)

from raypref.curate.u2net import U2NETP
from raypref.tiny import models
from raypref.tiny.cache import cached

# The seed under which random towers score the world's photographs most like trained ones: about
# 22 on average, and some degraded twins above their photograph and some below.
_PICKSCORE_SEED = 32


def path(name: str) -> Path:
    """`sd15`, `sd15-inpaint`, `pickscore` or `u2netp.pth`, built on first use."""

    def build(target: Path) -> None:
        with _isolated():
            _BUILDERS[name](target)

    return cached(f"small-{name}", build)


@contextmanager
def _isolated() -> Iterator[None]:
    """Build from a fixed seed and leave the caller's global state as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(0)
        yield


def _build_sd15(folder: Path) -> None:
    _save_pipeline(StableDiffusionPipeline, folder, in_channels=4)


def _build_sd15_inpaint(folder: Path) -> None:
    # Noisy latents, the mask, latents of the masked image.
    _save_pipeline(StableDiffusionInpaintPipeline, folder, in_channels=4 + 1 + 4)


def _save_pipeline(kind: Any, folder: Path, *, in_channels: int) -> None:
    pipeline = kind(
        vae=_vae(),
        text_encoder=_text_encoder(),
        tokenizer=models.tokenizer(),
        unet=_unet(in_channels=in_channels),
        scheduler=_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def _build_pickscore(folder: Path) -> None:
    side = 64  # of the world's photographs: they are scored as they are, not resized
    vision = CLIPVisionConfig(
        image_size=side,
        patch_size=8,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
    )
    config = CLIPConfig(
        text_config=_text_config().to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=32,
        logit_scale_init_value=math.log(100),  # as trained: scores are 100 x cosine
    )
    torch.default_generator.manual_seed(_PICKSCORE_SEED)
    CLIPModel(config).save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    size = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size).save_pretrained(folder)


def _build_u2netp(file: Path) -> None:
    torch.save(U2NETP().state_dict(), file)


_BUILDERS: dict[str, Callable[[Path], None]] = {
    "sd15": _build_sd15,
    "sd15-inpaint": _build_sd15_inpaint,
    "pickscore": _build_pickscore,
    "u2netp.pth": _build_u2netp,
}


def _scheduler() -> PNDMScheduler:
    """The published noise schedule."""
    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.18215,
    )


def _unet(*, in_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def _text_encoder() -> CLIPTextModel:
    return CLIPTextModel(_text_config())


def _text_config() -> CLIPTextConfig:
    size = len(models.tokenizer())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )

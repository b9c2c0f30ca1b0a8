"""A small SD-1.5 with the published one's proportions, to time training steps on a CPU.

The embedded model's VAE is small beside its UNet, so its steps spend less on encoding than those of
SD-1.5. This one has all of SD-1.5's layers, every width divided by four, and pictures of 256x256.
Convolutions shrink with the square of the widths and with the pixels, attention with the widths and
the square of the pixels: both by 64, so every part keeps its share. Weights are random: only time
is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from raypref.demo import models
from raypref.demo.cache import cached

SIZE = 256
NARROWER = 4


def sd15_in_proportion() -> str:
    """Folder in hub layout, built on first use."""
    return str(cached(f"bench-sd15-{NARROWER}", _build))


def _build(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = models.tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768 // NARROWER,
        intermediate_size=3072 // NARROWER,
        num_hidden_layers=12,
        num_attention_heads=12 // NARROWER,
        bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1,
    )
    pipe: Any = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=[width // NARROWER for width in (128, 256, 512, 512)],
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=32 // NARROWER,
            sample_size=SIZE,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        # Diffusers' defaults are the layers of Stable Diffusion 1.
        unet=UNet2DConditionModel(
            sample_size=SIZE // 8,
            block_out_channels=[width // NARROWER for width in (320, 640, 1280, 1280)],
            cross_attention_dim=768 // NARROWER,
            attention_head_dim=8 // NARROWER,  # the number of heads, in spite of its name
            norm_num_groups=32 // NARROWER,
        ),
        scheduler=models.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)

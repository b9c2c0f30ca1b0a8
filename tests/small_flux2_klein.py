"""The smallest FLUX.2 [klein] base in hub layout, with random weights (see `small.py`)."""

from __future__ import annotations

from pathlib import Path

import small
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from small_z_image import qwen_tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from raypref.demo.cache import cached

WIDTH = 16  # of Qwen3's hidden states


def path() -> Path:
    """The layout of black-forest-labs/FLUX.2-klein-base-4B; built on first use."""

    def build(folder: Path) -> None:
        with small.isolated():
            _build(folder)

    return cached(f"small-{small.VERSION}-flux2-klein", build)


def _build(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=28,  # what the 27th says is read
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=True,
        )
    )
    transformer = Flux2Transformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    Flux2KleinPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def _vae() -> AutoencoderKLFlux2:
    """Its batch norm has seen latents."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(4, 8, 16, 16), layers_per_block=1, norm_num_groups=4, sample_size=64
    )
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.25, 2.0)
    return vae

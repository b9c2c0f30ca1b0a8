"""Smallest checkpoints in hub layout, with random weights: for tests of what runs, not of how well.

They have the structure of the published models (files, keys, schedules) and cost next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import small_qwen3_vl
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from raypref.demo import models
from raypref.demo.cache import cached
from raypref.models.u2net import U2NETP

VERSION = 5  # of all that is built here: the cache outlives a checkout

# The seed under which random towers score the world's photographs most like trained ones: about
# 22 on average, and some degraded twins above their photograph and some below.
_PICKSCORE_SEED = 32


def path(name: str) -> Path:
    """One of the `_BUILDERS`, built on first use."""

    def build(target: Path) -> None:
        with isolated():
            _BUILDERS[name](target)

    return cached(f"small-{VERSION}-{name}", build)


@contextmanager
def isolated() -> Iterator[None]:
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


def _build_sdxl(
    folder: Path, *, kind: Any = StableDiffusionXLPipeline, in_channels: int = 4, **changes: Any
) -> None:
    """The layout of SDXL 1.0: two CLIP encoders, pooled text and size ids, Euler's method.

    Its inpainting member reads the mask and latents of the masked image too.
    """
    pooled, ids = 32, 8  # values of the second encoder's projection, and of each of six ids
    first = CLIPTextModel(_text_config(hidden_size=16))
    second = CLIPTextModelWithProjection(_text_config(hidden_size=32))
    unet = _unet(
        in_channels=in_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=16 + 32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=ids,
        projection_class_embeddings_input_dim=6 * ids + pooled,
    )
    changes["timestep_spacing"] = "leading"
    kind(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=models.tokenizer(),
        tokenizer_2=models.tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler.from_config(_scheduler().config, **changes),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)


def _build_sd3(folder: Path, *, dual: int = 1) -> None:
    """The layout of SD-3.5-Medium: three text encoders, dual attention, flow matching.

    Its last block has no dual attention; before it are so many with.
    """
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        num_layers=dual + 1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
        pos_embed_max_size=96,
        dual_attention_layers=tuple(range(dual)),
        qk_norm="rms_norm",
    )
    clips = [CLIPTextModelWithProjection(_text_config(hidden_size=16)) for _ in range(2)]
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae_of_16_channels(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clips[0],
        tokenizer=models.tokenizer(),
        text_encoder_2=clips[1],
        tokenizer_2=models.tokenizer(),
        text_encoder_3=_t5(),
        tokenizer_3=_t5_tokenizer(),
    ).save_pretrained(folder)


def _build_flux(kind: Any, folder: Path, *, in_channels: int) -> None:
    """The layout of FLUX.1-dev, and of Fill-dev, which reads masked latents and the mask too."""
    transformer = FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=4 * 16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    kind(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae_of_16_channels(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=_text_encoder(),
        tokenizer=models.tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
    ).save_pretrained(folder)


def _build_pixart(folder: Path) -> None:
    """The layout of PixArt-alpha: T5, a transformer that also predicts a variance."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
    )
    PixArtAlphaPipeline(
        tokenizer=_t5_tokenizer(),
        text_encoder=_t5(),
        vae=_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear"
        ),
    ).save_pretrained(folder)


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
    "sdxl": _build_sdxl,
    "sdxl-inpaint": partial(
        _build_sdxl, kind=StableDiffusionXLInpaintPipeline, in_channels=4 + 1 + 4
    ),
    "sdxl-v": partial(_build_sdxl, prediction_type="v_prediction"),
    "sd3": _build_sd3,
    "flux": partial(_build_flux, FluxPipeline, in_channels=4 * 16),
    "flux-fill": partial(_build_flux, FluxFillPipeline, in_channels=4 * (16 + 16 + 8 * 8)),
    "sd3-deep": partial(_build_sd3, dual=2),
    "pixart": _build_pixart,
    "qwen3-vl": small_qwen3_vl.build,
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


def _vae(**changes: Any) -> AutoencoderKL:
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (4, 8, 16, 16),  # narrow where images are large: that takes the time
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.18215,
    }
    return AutoencoderKL(**settings | changes)


def vae_of_16_channels(**scales: float) -> AutoencoderKL:
    return _vae(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **scales)


def _t5() -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(_t5_tokenizer()),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config)


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz,.'0123456789"]
    return T5Tokenizer(
        vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=512
    )


def _unet(*, in_channels: int, **changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": in_channels,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        # With attention on the way up, too, a pass would cost half as much again.
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**settings | changes)


def _text_encoder() -> CLIPTextModel:
    return CLIPTextModel(_text_config())


def _text_config(*, hidden_size: int = 32) -> CLIPTextConfig:
    size = len(models.tokenizer())
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=hidden_size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )

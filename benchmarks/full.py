"""Model folders of the published sizes, from configurations alone: random weights, no download.

The real loading code runs on them, so that time and memory can be measured where no weights are.
The numbers stand as in the `config.json` of the checkpoint named beside each. `small` has the same
layout at reduced widths and depths, for a CPU. Weights are drawn on the device: matrices Gaussian
with std 0.02, norms 1, biases 0, so that activations keep their size from layer to layer.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPTextModel

from raypref.demo import models
from raypref.models.u2net import DECODERS, FULL, STAGES, Plan, U2Net

Size = Literal["full", "small"]
STD = 0.02
TOKENS = len(models.tokenizer())  # the demo's: the published vocabulary is a file of its own

# stable-diffusion-v1-5/stable-diffusion-v1-5, unet/config.json. What is not named is diffusers'
# default, which is SD-1's. stable-diffusion-inpainting differs by in_channels=9.
UNET: dict[Size, dict[str, Any]] = {
    "full": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,  # the number of heads, in spite of its name
    },
    "small": {
        "sample_size": 8,
        "block_out_channels": (16, 32, 32, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    },
}
# The same repository, vae/config.json.
VAE: dict[Size, dict[str, Any]] = {
    "full": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    "small": {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
}
# The same repository, text_encoder/config.json: the text tower of openai/clip-vit-large-patch14.
TEXT: dict[Size, dict[str, Any]] = {
    "full": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    },
    "small": {
        "vocab_size": TOKENS,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
    },
}
# stabilityai/stable-diffusion-3.5-medium, transformer/config.json.
TRANSFORMER: dict[Size, dict[str, Any]] = {
    "full": {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "small": {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 3,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 96,
        "dual_attention_layers": (0, 1),
        "qk_norm": "rms_norm",
    },
}
# yuvalkirstain/PickScore_v1, config.json: laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
PICKSCORE: dict[Size, dict[str, dict[str, Any]]] = {
    "full": {
        "text": {
            "vocab_size": 49408,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "projection_dim": 1024,
            "hidden_act": "gelu",
        },
        "vision": {
            "image_size": 224,
            "patch_size": 14,
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "projection_dim": 1024,
            "hidden_act": "gelu",
        },
    },
    "small": {
        "text": {**TEXT["small"], "hidden_act": "gelu"},
        "vision": {
            "image_size": 56,
            "patch_size": 14,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 32,
            "hidden_act": "gelu",
        },
    },
}
U2NET: dict[Size, Plan] = {"full": FULL, "small": dict.fromkeys((*STAGES, *DECODERS), (4, 8))}
# Of the weights as the presets load them; the small ones are for CPUs, which are slow in halves.
DTYPES = {
    "sd15": torch.bfloat16,
    "sd15-inpaint": torch.float16,
    "sd35m": torch.bfloat16,
    "pickscore": torch.float32,
    "u2net": torch.float32,
}
SIDE: dict[Size, int] = {"full": 512, "small": 64}  # of images, pixels


def networks(name: str, size: Size) -> dict[str, Any]:
    """The networks of a model without weights (on the meta device), by their place in its folder.

    Args:
        name: one of `DTYPES`.
        size: `full` or `small`.
    """
    with torch.device("meta"):
        if name == "sd35m":
            return {"transformer": SD3Transformer2DModel(**TRANSFORMER[size])}
        if name == "pickscore":
            towers = PICKSCORE[size]
            config = CLIPConfig(
                text_config=towers["text"] | _specials(),
                vision_config=towers["vision"],
                projection_dim=towers["text"]["projection_dim"],
            )
            return {"": CLIPModel(config)}
        if name == "u2net":
            return {"": U2Net(U2NET[size])}
        channels = 9 if name == "sd15-inpaint" else 4
        return {
            "unet": UNet2DConditionModel(in_channels=channels, out_channels=4, **UNET[size]),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=4,
                sample_size=SIDE[size],
                **VAE[size],
            ),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT[size] | _specials())),
        }


def parameters(name: str, size: Size) -> dict[str, int]:
    """How many parameters each network of a model has."""
    made = networks(name, size)
    return {place: sum(p.numel() for p in network.parameters()) for place, network in made.items()}


def model(name: str, size: Size, *, under: Path, device: torch.device) -> str:
    """The folder of a model in hub layout (U2-Net: the file), written on first use.

    Args:
        name: one of `DTYPES`.
        size: `full` or `small`.
        under: folder of all models.
        device: where the weights are drawn.
    """
    target = under / size / (f"{name}.safetensors" if name == "u2net" else name)
    if not target.exists():
        partial = target.with_name(f"partial-{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        dtype = DTYPES[name] if size == "full" else torch.float32
        made = {
            # Diffusers' own `to` warns of layers to be kept in float32; none of these has any.
            place: filled(nn.Module.to(network, dtype), device)
            for place, network in networks(name, size).items()
        }
        _WRITERS[name](made, partial)
        partial.rename(target)
    return str(target)


def filled(network: nn.Module, device: torch.device) -> nn.Module:
    """Give a network of the meta device memory on a device, and random weights."""
    network.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, values in network.named_parameters():
            if name == "logit_scale":
                values.fill_(math.log(100))  # as trained: scores are 100 x cosine
            elif values.dim() == 1 and name.endswith("weight"):
                values.fill_(1)
            elif name.endswith("bias"):
                values.zero_()
            else:
                values.normal_(0, STD, generator=generator)
        for name, buffer in network.named_buffers():
            if name.endswith("position_ids"):
                buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
            elif name.endswith("running_var"):
                buffer.fill_(1)
            elif buffer.is_floating_point() and not name.endswith("running_mean"):
                buffer.normal_(0, STD, generator=generator)  # SD-3's table of positions
            else:
                buffer.zero_()
    return network.eval()


def _write_pipeline(kind: Any) -> Callable[[dict[str, Any], Path], None]:
    def write(networks: dict[str, Any], folder: Path) -> None:
        scheduler = PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            set_alpha_to_one=False,
            skip_prk_steps=True,
            steps_offset=1,
        )
        kind(
            **networks,
            tokenizer=models.tokenizer(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)

    return write


def _write_sd35m(networks: dict[str, Any], folder: Path) -> None:
    """What is trained, alone: encoders and VAE would be another 11 GB, and are not timed."""
    networks["transformer"].save_pretrained(folder / "transformer")
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusion3Pipeline",
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")


def _write_pickscore(networks: dict[str, Any], folder: Path) -> None:
    clip = networks[""]
    side = clip.config.vision_config.image_size
    clip.save_pretrained(folder)
    models.tokenizer().save_pretrained(folder)
    crop = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder)


def _write_u2net(networks: dict[str, Any], file: Path) -> None:
    save_file({k: v.cpu().contiguous() for k, v in networks[""].state_dict().items()}, file)


_WRITERS: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "sd15": _write_pipeline(StableDiffusionPipeline),
    "sd15-inpaint": _write_pipeline(StableDiffusionInpaintPipeline),
    "sd35m": _write_sd35m,
    "pickscore": _write_pickscore,
    "u2net": _write_u2net,
}


def _specials() -> dict[str, int]:
    """Ids of the tokenizer's own start and end, by which CLIP finds where to pool."""
    return {"bos_token_id": TOKENS - 2, "eos_token_id": TOKENS - 1, "pad_token_id": TOKENS - 1}

"""Writes checkpoints the way the published repositories do: old keys, old names, old configs."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

# All that the published configurations of these parts say; newer keys take their defaults.
UNET_KEYS = (
    "_class_name act_fn attention_head_dim block_out_channels center_input_sample "
    "cross_attention_dim down_block_types downsample_padding flip_sin_to_cos freq_shift "
    "in_channels layers_per_block mid_block_scale_factor norm_eps norm_num_groups out_channels "
    "sample_size up_block_types"
)
VAE_KEYS = (
    "_class_name act_fn block_out_channels down_block_types in_channels latent_channels "
    "layers_per_block norm_num_groups out_channels sample_size up_block_types"
)
SCHEDULER_KEYS = (
    "_class_name beta_end beta_schedule beta_start num_train_timesteps set_alpha_to_one "
    "skip_prk_steps steps_offset trained_betas"
)

# What the index calls the feature extractor; the second name is gone from transformers.
EXTRACTORS = {"sd15": "CLIPImageProcessor", "sd15-inpaint": "CLIPFeatureExtractor"}

PT = {"format": "pt"}

# The autoencoder's attention was saved under these names.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class Published(NamedTuple):
    """Folders and the file as a person would download them."""

    sd15: str
    inpaint: str
    pickscore: str
    processor: str
    u2net: str


def publish_pipeline(source: Path, target: Path, *, extractor: str) -> None:
    shutil.copytree(source, target)
    config = read(target / "model_index.json")
    config.pop("image_encoder", None)
    config["_diffusers_version"] = "0.6.0"
    config["feature_extractor"] = ["transformers", extractor]
    config["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    write(target / "model_index.json", config)

    age_config(target / "unet" / "config.json", UNET_KEYS)
    age_config(target / "vae" / "config.json", VAE_KEYS)
    age_config(target / "scheduler" / "scheduler_config.json", SCHEDULER_KEYS, clip_sample=False)
    vae = target / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({old_attention(k): v for k, v in load_file(vae).items()}, vae, metadata=PT)

    text = target / "text_encoder"
    weights = {f"text_model.{k}": v for k, v in load_file(text / "model.safetensors").items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, text / "model.safetensors", metadata=PT)
    age_clip_config(text / "config.json")

    publish_tokenizer(target / "tokenizer", target / "tokenizer")
    write(target / "feature_extractor" / "preprocessor_config.json", old_processor(224))
    add_safety_checker(target / "safety_checker")
    for file in list(target.rglob("*.safetensors")):
        add_variant(file)


def publish_pickscore(source: Path, model: Path, processor: Path) -> None:
    """Model and processor are two repositories; this processor has the tokenizer's one file too."""
    weights = load_file(source / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(65)[None]
    model.mkdir()
    save_file(weights, model / "model.safetensors", metadata=PT)
    shutil.copy(source / "config.json", model)
    age_clip_config(model / "config.json")
    write(processor / "preprocessor_config.json", old_processor(64))
    shutil.copy(source / "tokenizer.json", processor)
    publish_tokenizer(source, processor)
    assert (processor / "tokenizer.json").is_file()


def publish_u2net(source: Path, target: Path) -> None:
    """The published file predates torch's zip format."""
    state = OrderedDict(torch.load(source, weights_only=True))
    torch.save(state, target, _use_new_zipfile_serialization=False)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def age_config(path: Path, keys: str, **more: Any) -> None:
    config = {key: value for key, value in read(path).items() if key in keys.split()}
    write(path, {**config, "_diffusers_version": "0.6.0", **more})


def age_clip_config(path: Path) -> None:
    """Old ids of the special tokens, in every part, though the vocabulary has others."""
    config = read(path)
    config.pop("dtype", None)
    config |= {"torch_dtype": "float32", "transformers_version": "4.22.0.dev0"}
    for part in (config, config.get("text_config")):
        if part and "max_position_embeddings" in part:
            part |= {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    write(path, config)


def old_attention(key: str) -> str:
    for new, old in OLD_ATTENTION.items():
        key = key.replace(f"mid_block.attentions.0.{new}.", f"mid_block.attentions.0.{old}.")
    return key


def publish_tokenizer(source: Path, target: Path) -> None:
    """vocab.json, merges.txt and the two files beside them, as CLIP's first tokenizer had them."""
    model = read(source / "tokenizer.json")["model"]
    if source == target:
        shutil.rmtree(target)
    write(target / "vocab.json", model["vocab"])
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (target / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start, end = ({"content": f"<|{which}oftext|>", **flags} for which in ("start", "end"))
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end["content"]}
    write(target / "special_tokens_map.json", special)
    typed = {
        name: {"__type": "AddedToken", **token} if isinstance(token, dict) else token
        for name, token in special.items()
    }
    more = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "tokenizer_class": "CLIPTokenizer",
    }
    write(target / "tokenizer_config.json", {**typed, **more})


def old_processor(side: int) -> dict[str, Any]:
    return {
        "crop_size": side,
        **dict.fromkeys(("do_center_crop", "do_normalize", "do_resize"), True),
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": side,
    }


def add_safety_checker(folder: Path) -> None:
    """One that finds every image unsafe: where it runs, images are black."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    part = dict(zip(sizes, (16, 32, 1, 2), strict=True))
    vision = {**part, "image_size": 224, "patch_size": 32}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config={**part, "vocab_size": 64}, vision_config=vision, projection_dim=16)
    )
    checker.concept_embeds_weights.data.fill_(-2)
    checker.save_pretrained(folder)


def add_variant(file: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
    save_file(half, file.with_suffix(".fp16.safetensors"), metadata=PT)

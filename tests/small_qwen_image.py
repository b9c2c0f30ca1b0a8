"""The smallest Qwen-Image in hub layout, with random weights (see `small.py`)."""

from __future__ import annotations

from pathlib import Path

import small
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from raypref.demo.cache import cached

# Of the published scheduler.
SCHEDULE = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}


def path() -> Path:
    """The layout of Qwen/Qwen-Image; built on first use."""

    def build(folder: Path) -> None:
        with small.isolated():
            _build(folder)

    return cached(f"small-{small.VERSION}-qwen-image", build)


def _build(folder: Path) -> None:
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULE),
        vae=AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1),
        text_encoder=None,
        tokenizer=None,
        transformer=QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    template = pipeline.prompt_template_encode
    tokenizer = _tokenizer(template)
    pipeline.register_modules(tokenizer=tokenizer, text_encoder=_text_encoder(len(tokenizer)))
    # As many as Qwen's own tokenizer makes of what stands before a caption.
    before = tokenizer(template.partition("{}")[0]).input_ids
    assert len(before) == pipeline.prompt_template_encode_start_idx
    pipeline.save_pretrained(folder)


def _text_encoder(tokens: int) -> Qwen2_5_VLForConditionalGeneration:
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokens,
            "bos_token_id": None,
            "eos_token_id": None,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _tokenizer(template: str) -> Qwen2Tokenizer:
    """A token per word of the template, and per byte of what is no beginning of one."""
    pieces = template.replace("<|im_start|>", "\n").replace("<|im_end|>", "\n").replace("{}", "")
    words: list[str] = []
    for line in pieces.replace(":", "\n").replace(",", "\n").splitlines():
        first, *others = line.split(" ")
        words += [first, *(f"Ġ{word}" for word in others)]  # a word takes the space before it
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = dict.fromkeys((w[:n], w[n]) for w in words for n in range(1, len(w)))
    made = dict.fromkeys([*bytes_to_unicode().values(), *map("".join, merges), *specials])
    ids = {token: i for i, token in enumerate(made)}
    return Qwen2Tokenizer(vocab=ids, merges=[*merges], additional_special_tokens=specials[1:])

"""The smallest Z-Image in hub layout, with random weights (see `small.py`)."""

from __future__ import annotations

from pathlib import Path

import small
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model
from transformers.convert_slow_tokenizer import bytes_to_unicode

from raypref.demo.cache import cached

SHIFT = 6.0  # of the published scheduler
# That of Qwen3, as far as the pipeline goes: what a user says, and the answer's beginning.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)


def path() -> Path:
    """The layout of Tongyi-MAI/Z-Image; built on first use."""

    def build(folder: Path) -> None:
        with small.isolated():
            _build(folder)

    return cached(f"small-{small.VERSION}-z-image", build)


def _build(folder: Path) -> None:
    tokenizer = qwen_tokenizer()
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    transformer = ZImageTransformer2DModel(
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)  # zeros before training
    ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=small.vae_of_16_channels(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A token per byte."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = {token: i for i, token in enumerate([*bytes_to_unicode().values(), *specials])}
    tokenizer = Qwen2Tokenizer(vocab=ids, merges=[], additional_special_tokens=specials[1:])
    tokenizer.chat_template = TEMPLATE
    return tokenizer

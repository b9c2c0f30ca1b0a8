"""Smallest vision-language checkpoints in hub layout, with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>")
SPECIALS += ("<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
# As Qwen2-VL's, but for the text of the system's turn and for videos.
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nHelp."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_parameters": ROPE,
    "initializer_range": 0.2,  # or nothing would depend on anything
}
VISION = {"depth": 2, "num_heads": 4, "patch_size": 14, "initializer_range": 0.2}


@contextmanager
def isolated() -> Iterator[None]:
    """Build from a fixed seed and leave the caller's global state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def prompt_text(question: str, places: int) -> str:
    """What the template makes of a question about an image of so many tokens."""
    return (
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * places
        + f"<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def save_qwen2_5_vl(folder: Path, *, says: Sequence[str] = ()) -> Path:
    """The layout of Qwen2.5-VL; it gives one answer, in these tokens, if there are any."""
    tokenizer = save_processor(folder, patch_size=14, answers=says)
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        vision_config={
            **VISION,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=False,
        **image_tokens(tokenizer),
    )
    with isolated():
        model = Qwen2_5_VLForConditionalGeneration(config)
        if says:
            teach(model, tokenizer.convert_tokens_to_ids(["\u010a", *says, "<|im_end|>"]))
    # As published: one answer of a kind, with a penalty on repetitions.
    model.generation_config.update(
        do_sample=True,
        temperature=0.1,
        repetition_penalty=1.05,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    model.save_pretrained(folder)
    flatten_config(folder)
    return folder


def save_qwen3_vl(folder: Path) -> Path:
    """The layout of Qwen3-VL."""
    tokenizer = save_processor(folder, patch_size=16)
    rope = {**ROPE, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "rope_parameters": rope,
            "vocab_size": len(tokenizer),
        },
        vision_config={
            **VISION,
            "patch_size": 16,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        **image_tokens(tokenizer),
    )
    with isolated():
        Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def save_hpsv3(folder: Path, *, old_names: bool = True) -> tuple[Path, Path]:
    """Base folder (architecture, image processor, tokenizer) and weight file of HPSv3.

    Args:
        folder: of both.
        old_names: name weights as transformers did before 4.52.
    """
    base = folder / "Qwen2-VL-7B-Instruct"
    tokenizer = save_processor(base, patch_size=14)
    config = Qwen2VLConfig(
        # The published model has rows to spare; HPSv3 has one for each token and one for its own.
        text_config={**TEXT, "vocab_size": len(tokenizer) + 9},
        vision_config={**VISION, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2},
        tie_word_embeddings=False,
        **image_tokens(tokenizer),
    )
    config.save_pretrained(base)
    flatten_config(base)
    config.text_config.vocab_size = len(tokenizer) + 1
    with isolated():
        model = Qwen2VLForConditionalGeneration(config)
        head = torch.nn.Sequential(
            torch.nn.Linear(32, 1024),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.05),
            torch.nn.Linear(1024, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 2),
        )
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if old_names:
        state = {
            name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): v
            for name, v in state.items()
        }
    state |= {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    save_file({name: value.clone() for name, value in state.items()}, folder / "HPSv3.safetensors")
    return base, folder / "HPSv3.safetensors"


def save_processor(folder: Path, *, patch_size: int, answers: Sequence[str] = ()) -> Qwen2Tokenizer:
    """Image processor and a tokenizer of letters, "Yes", "No" and the pieces of the answers."""
    words = ["Ye", "Yes", "No", "ye", "yes", "no"]
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o"), ("y", "e"), ("ye", "s"), ("n", "o")]
    pieces = [piece for piece in dict.fromkeys(answers) if piece not in bytes_to_unicode().values()]
    vocabulary = [*bytes_to_unicode().values(), *words, *pieces, *SPECIALS]
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Qwen2Tokenizer(
        vocab=ids, merges=merges, additional_special_tokens=list(SPECIALS[1:])
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    published = {
        "min_pixels": 4 * (2 * patch_size) ** 2,
        "max_pixels": 16 * (2 * patch_size) ** 2,
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(published))
    return tokenizer


def flatten_config(folder: Path) -> None:
    """Rewrite a configuration as Qwen2-VL and Qwen2.5-VL publish it: the text's at the top."""
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("layer_types", None)
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
    (folder / "config.json").write_text(json.dumps(text | config))


def image_tokens(tokenizer: Any) -> dict[str, int]:
    """What the configurations say about special tokens."""
    names = ("image", "video"), ("vision_start", "vision_end")
    return {f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}_pad|>") for n in names[0]} | {
        f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in names[1]
    }


@torch.no_grad()
def teach(model: Qwen2_5_VLForConditionalGeneration, chain: Sequence[int]) -> None:
    """Make each token of the chain be followed by the next: nothing else is looked at."""
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embeddings = model.model.language_model.embed_tokens.weight
    model.lm_head.weight.zero_()
    for before, after in pairwise(chain):
        model.lm_head.weight[after] = 10 * embeddings[before]

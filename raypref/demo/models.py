"""The embedded models, untrained: the published architectures, a few hundred times smaller.

Models of diffusers are annotated as Any: it ships no types.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from raypref.demo import world
from raypref.demo.photograph import SIZE

SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def vae() -> Any:
    """64x64 pixels to 16x16x4 latents: a twelfth of the numbers."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,  # too dear for what it gives
    )


def unet(*, in_channels: int) -> Any:
    """Attends to the caption at 8x8 and 4x4; 4 channels in, or 9 to inpaint."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=in_channels,
        out_channels=4,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def scheduler() -> Any:
    """The noise schedule of Stable Diffusion 1.5, but it ends in more noise.

    So few latents would keep their mean visible at the published last step (`beta_end` 0.012), and
    samples, which start from pure noise, would come out tinted.
    """
    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def text_encoder() -> CLIPTextModel:
    """Captions of up to 77 tokens to 77x64."""
    return CLIPTextModel(_text_config())


def scorer() -> CLIPModel:
    """Image and text towers with 64-dimensional embeddings, as PickScore's."""
    vision = CLIPVisionConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=64,
    )
    text = _text_config().to_dict()
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=64)
    )


def tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level encoding in which each word of the world is one token."""
    vocabulary, merges = _vocabulary()
    # Annotated as text, taken as pairs.
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def _text_config() -> CLIPTextConfig:
    size = len(_vocabulary()[0])
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=64,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges of CLIP's byte-level encoding that make each word of the world one token.

    The specials come last, as in the published vocabulary: the text model pools at the highest id.
    """
    letters = _byte_letters()
    tokens = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    merges: list[tuple[str, str]] = []
    for word in world.words():
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:  # what the words before this one do to it
            parts = _merge(parts, pair)
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            parts = _merge(parts, pair)
            merges.append(pair)
            tokens["".join(pair)] = None
    tokens.update(dict.fromkeys(SPECIALS))
    return {token: index for index, token in enumerate(tokens)}, merges


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(hidden))]

"""The two towers of a CLIP model, as the rewards built on one use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from raypref.models.hub import model_folder
from raypref.rewards.base import moved, tokenize
from raypref.rewards.checkpoint import load_folder, load_part, require_vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

CONTEXT = 77  # tokens a prompt is cut at

Pixels: TypeAlias = "Callable[[Sequence[Image.Image]], Tensor]"
FromPixels: TypeAlias = "Callable[[Tensor], Tensor]"  # RGB in 0..1, with a gradient


class Inputs(NamedTuple):
    """What a CLIP model reads, on the CPU."""

    pixels_BCHW: Tensor  # float32
    tokens: Mapping[str, Tensor]  # of the prompts, see `tokens_of`


class Clip:
    """Image and text embeddings of unit length.

    Embeddings are normalised, and everything after them is computed, in float32 whatever the
    precision of the towers.

    Args:
        model: already on its device and in its precision.
        tokenizer: cuts at 77 tokens and pads to them: no shape depends on the batch's prompts.
        pixels: images to the model's input [B, 3, H, W], float32.
        from_pixels: the same of images as tensors.
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: CLIPTokenizer,
        pixels: Pixels,
        from_pixels: FromPixels,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.pixels = pixels
        self.from_pixels = from_pixels

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the model reads of B prompts, on the CPU."""
        return tokens_of(self.tokenizer, prompts)

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Inputs:
        """What the model reads of B images and prompts, on the CPU."""
        return Inputs(self.pixels(images), self.tokens(prompts))

    def images(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings of B images: [B, D]."""
        from torch.nn.functional import normalize

        features_BD = self.model.get_image_features(
            pixel_values=pixels_BCHW.to(self.model.device, self.model.dtype)
        ).pooler_output
        return normalize(features_BD.float(), dim=-1)

    def seen(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings of B images, RGB in 0..1, with a gradient: [B, D], float32 or better."""
        from raypref.rewards.pixels import precise, unit

        read_BCHW = self.from_pixels(precise(pixels_BCHW, self.model.device))
        features_BD = self.model.get_image_features(
            pixel_values=read_BCHW.to(self.model.dtype)
        ).pooler_output
        return unit(features_BD)

    def texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Embeddings of B prompts: [B, D]."""
        from torch.nn.functional import normalize

        features_BD = self.model.get_text_features(**moved(tokens, self.model.device)).pooler_output
        return normalize(features_BD.float(), dim=-1)

    def cosines(self, batch: Inputs) -> Tensor:
        """Cosine of each image with its own prompt: [B], -1..1."""
        return (self.images(batch.pixels_BCHW) * self.texts(batch.tokens)).sum(dim=-1)


def tokens_of(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Token ids and mask of B prompts, cut at 77 tokens and padded to them: int64 [B, 77] each."""
    tokens = tokenize(tokenizer, prompts, padding="max_length", truncation=True, max_length=CONTEXT)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def clip_folder(ref: str, *, key: str) -> str:
    """What to hand to `load_clip`, of `hub.model_folder`.

    Raises:
        InputError: it is not there, or has no image processor or tokenizer beside the model.
    """
    for probe in ("preprocessor_config.json", "tokenizer_config.json"):
        model_folder(ref, key=key, probe=probe)
    return model_folder(ref, key=key, probe="config.json")


def load_clip(source: str, *, key: str, device: torch.device, dtype: torch.dtype) -> Clip:
    """A CLIP model with the image processor and the tokenizer beside it.

    Raises:
        InputError: one of the three is missing or not CLIP's.
    """
    from transformers import CLIPImageProcessorPil, CLIPModel

    processor = load_part(CLIPImageProcessorPil, source, key=key)
    model = load_folder(CLIPModel, source, key=key).to(device=device, dtype=dtype)
    tokenizer = load_tokenizer(source, model, key=key)
    return Clip(model, tokenizer, processed(processor), differentiably(processor))


def load_tokenizer(source: str, model: Any, *, key: str) -> CLIPTokenizer:
    """The tokenizer of a folder or hub id, if it is that of the model.

    Raises:
        InputError: it is not there, or of another model.
    """
    from transformers import CLIPTokenizer

    tokenizer = load_part(CLIPTokenizer, source, key=key)
    require_vocabulary(tokenizer, model.config.text_config.vocab_size, key=key, source=source)
    return tokenizer


def processed(processor: CLIPImageProcessorPil) -> Pixels:
    """The model's input by a Pillow image processor.

    By name and never `CLIPProcessor`: that resizes with torchvision where there is one, and
    scores would differ from machine to machine.
    """
    return lambda images: processor(images=list(images), return_tensors="pt")["pixel_values"]


def differentiably(processor: CLIPImageProcessorPil) -> FromPixels:
    """The model's input of tensors, as by an image processor, with a gradient."""
    from raypref.rewards.pixels import as_processor

    return partial(as_processor, processor)


def scores(values_B: Tensor) -> np.ndarray:
    """As every reward returns them: float32 [B], on the CPU."""
    return values_B.float().cpu().numpy()

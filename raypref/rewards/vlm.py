"""Vision-language models of Qwen's kind: images and questions in, likelihoods or answers out.

They are fed by image processor and tokenizer: their processor as a whole needs torchvision, for
videos that nobody asks about here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image

from raypref.core.config import InputError
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.core.messages import first_line
from raypref.models.hub import from_pretrained, model_folder
from raypref.rewards.base import moved, tokenize

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Asked: TypeAlias = dict[str, Tensor]

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_PROBES = ("config.json", "preprocessor_config.json", "tokenizer_config.json")


def checked_folder(ref: str, *, key: str, kinds: Sequence[str] = KINDS) -> str:
    """What to hand to `hub.from_pretrained`, after a look at the small files.

    Raises:
        InputError: it cannot be had, or is not of these kinds.
    """
    from transformers import AutoConfig

    for probe in _PROBES:
        folder = model_folder(ref, key=key, probe=probe)
    try:
        kind = from_pretrained(AutoConfig, folder).model_type
    except (OSError, ValueError) as error:
        raise InputError(
            f"{key}: '{ref}' has no readable config.json: {first_line(error)}"
        ) from None
    if kind not in kinds:
        raise InputError(f"{key}: '{ref}' is a {kind} model; {' or '.join(kinds)} is needed")
    return folder


def pretrained(
    loader: Any,
    folder: str | None,
    *,
    key: str,
    dtype: DType,
    device: torch.device,
    **options: Any,
) -> Any:
    """`from_pretrained`, frozen, which refuses weights that do not fit the model.

    Weights go from the file to the device one by one: the host never holds the model.

    Raises:
        InputError: weights are missing, surplus, damaged or of another shape.
    """
    from safetensors import SafetensorError

    try:
        model, report = from_pretrained(
            loader,
            folder,
            dtype=torch_dtype(dtype),
            device_map={"": device},
            output_loading_info=True,
            **options,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{key}: the weights cannot be loaded: {first_line(error)}") from None
    for what in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, report[f"{what}_keys"])):
            raise InputError(f"{key}: {len(names)} weights are {what}, such as {names[0]}")
    return model.eval().requires_grad_(False)


def plain(prompt: str) -> str:
    """The prompt without anything that a tokenizer would take for a special token."""
    return prompt.replace("<|", "< |")


class Reader:
    """Makes a model's inputs from images and the text asked about each.

    Args:
        folder: holds image processor and tokenizer.
        key: the configuration key it came from, for the error.
        pixels: resize images to about this many pixels; None: to within the model's own limits.
    """

    def __init__(self, folder: str, *, key: str, pixels: int | None = None) -> None:
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        limits: dict[str, Any] = (
            {} if pixels is None else {"min_pixels": pixels, "max_pixels": pixels}
        )
        self.images = from_pretrained(Qwen2VLImageProcessorPil, folder, **limits)
        self.tokenizer: Any = from_pretrained(AutoTokenizer, folder)
        if not self.tokenizer.chat_template:
            raise InputError(f"{key}: the tokenizer of '{folder}' has no chat template")
        # A token that every conversation holds: what fills a short row is masked, but a repetition
        # penalty would notice a new one, and an answer would depend on the rest of its batch.
        self.tokenizer.pad_token = "<|im_end|>"

    def __call__(
        self, images: Sequence[Image.Image], texts: Sequence[str], *, side: Literal["left", "right"]
    ) -> dict[str, Tensor]:
        """Inputs of B conversations, one image and one text each, padded on one side."""
        pixels = self.images(images=list(images), return_tensors="pt")
        place = "<|image_pad|>"
        # An image takes one token for every square of patches that the model merges.
        counts = pixels["image_grid_thw"].prod(-1) // self.images.merge_size**2
        asked = zip(texts, counts.tolist(), strict=True)
        conversations = [
            self._conversation(text).replace(place, place * count, 1) for text, count in asked
        ]
        tokens = tokenize(self.tokenizer, conversations, padding=True, padding_side=side)
        is_image = tokens["input_ids"] == self.tokenizer.convert_tokens_to_ids(place)
        # Qwen2.5-VL does without the last one silently, and places the image wrongly.
        return {**tokens, **pixels, "mm_token_type_ids": is_image.long()}

    def from_pixels(
        self, pixels_BCHW: Tensor, texts: Sequence[str], *, side: Literal["left", "right"]
    ) -> dict[str, Tensor]:
        """The same of B images of one size, RGB in 0..1, with a gradient to their pixels."""
        from raypref.rewards.pixels import as_patches

        count, _, height, width = pixels_BCHW.shape
        blank = Image.new("RGB", (width, height))  # an image's tokens are those of its size
        inputs = self([blank] * count, texts, side=side)
        _, rows, columns = inputs["image_grid_thw"][0].tolist()
        return inputs | {"pixel_values": as_patches(self.images, pixels_BCHW, (rows, columns))}

    def _conversation(self, text: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        chat = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        assert isinstance(chat, str)
        return chat


class VisionLanguage:
    """A model that answers questions about images.

    Args:
        folder: from `checked_folder`.
        key: the configuration key it came from, for errors.
        dtype: precision of the model.
        num_gpus: 0 runs on the CPU.
    """

    def __init__(self, folder: str, *, key: str, dtype: DType, num_gpus: float) -> None:
        from transformers import AutoModelForImageTextToText

        self.read = Reader(folder, key=key)
        device = pick_device(num_gpus)
        self.model = pretrained(
            AutoModelForImageTextToText, folder, key=key, dtype=dtype, device=device
        )

    def prepare(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Asked:
        """What the model reads of B images and a question about each, on the CPU."""
        return self.read(images, questions, side="left")  # the answers begin at one place

    def prepare_pixels(self, pixels_BCHW: Tensor, questions: Sequence[str]) -> Asked:
        """The same of images as tensors, on the model's device."""
        from raypref.rewards.pixels import precise

        return self.read.from_pixels(
            precise(pixels_BCHW, self.model.device), questions, side="left"
        )

    def next_token(self, asked: Asked) -> Tensor:
        """Log-probability of each token to begin the answer: float32 [B, V], on the CPU."""
        logits_B1V = self.model(**moved(asked, self.model.device), logits_to_keep=1).logits
        return logits_B1V[:, -1].float().log_softmax(-1).cpu()

    def answers(self, asked: Asked, *, max_new_tokens: int) -> list[str]:
        """The likeliest answers, token by token; no chance is involved."""
        inputs = moved(asked, self.model.device)
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        ids_BL = self.model.generate(**inputs, **greedy, max_new_tokens=max_new_tokens)
        length = inputs["input_ids"].shape[1]
        decoded = self.read.tokenizer.batch_decode(ids_BL[:, length:], skip_special_tokens=True)
        return [answer.strip() for answer in decoded]

"""Drops what is no photograph: a vision-language model is asked, and its yes or no decides.

The released code asks it of HPDv3 only and reads the generated text; here the first token of the
answer decides, whichever of "yes" and "no" is likelier, so that there is always an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from raypref.core.config import Location, Resources, Section, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.core.rows import Row, reject
from raypref.images.decode import as_image
from raypref.models.hub import from_pretrained, model_folder
from raypref.rewards.base import moved, tokenize

if TYPE_CHECKING:
    from torch import Tensor

ANSWERS = ("yes", "no")


class PhotographicConfig(Section):
    """The filter for artworks; off by default, as the paper does not have it."""

    enabled: bool = setting(False, "ask a vision-language model whether an image is a photograph")
    model: Location = setting(
        "Qwen/Qwen3-VL-8B-Instruct",
        "hub id or folder of an image-text-to-text model of Qwen's kind",
    )
    dtype: DType = setting("bfloat16", "precision of the model")
    question: str = setting(
        "Is this image an artwork or in anime style? Answer with yes or no.",
        "an image is kept when the answer is no",
    )
    resources: Resources = Resources(batch=4)

    def folder(self) -> str:
        """What to hand to `hub.from_pretrained`."""
        return model_folder(self.model, key="photographic.model", probe="config.json")


class Photographic:
    """Transform: rejects images that the model calls artworks."""

    name = "photographic"
    reads: tuple[str, ...] = ("chosen",)
    writes = pa.schema([])

    def __init__(self, config: PhotographicConfig) -> None:
        self.config = config
        self.resources = config.resources

    def setup(self) -> None:
        """Load the model."""
        from transformers import AutoModelForImageTextToText, AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        folder = self.config.folder()
        # By name, as in `rewards/vlm.py`: an answer must not hang on whether torchvision is there.
        self.images = from_pretrained(Qwen2VLImageProcessorPil, folder)
        self.tokenizer: Any = from_pretrained(AutoTokenizer, folder)
        dtype, device = torch_dtype(self.config.dtype), pick_device(self.resources.num_gpus)
        model = from_pretrained(
            AutoModelForImageTextToText, folder, dtype=dtype, device_map={"": device}
        )
        self.model: Any = model.eval().requires_grad_(False)
        yes, no = (self._tokens_of(answer) for answer in ANSWERS)
        self.answers = [sorted(yes - no), sorted(no - yes)]

    def prepare(self, rows: list[Row]) -> dict[str, Tensor]:
        """The model's inputs."""
        return self.inputs([as_image(row["chosen"]) for row in rows])

    def compute(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-likelihood, up to a constant per image, of "yes" and "no": float32 [B, 2]."""
        import torch

        logits_B1V = self.model(**moved(batch, self.model.device), logits_to_keep=1).logits
        last_BV = logits_B1V[:, -1].float().cpu()
        return torch.stack([last_BV[:, ids].logsumexp(-1) for ids in self.answers], -1)

    def finish(self, rows: list[Row], out: Tensor) -> None:
        """Reject the artworks."""
        for row, answers_2 in zip(rows, out, strict=False):
            if answers_2[0] > answers_2[1]:
                chance = answers_2.softmax(0)[0].item()
                reject(
                    row, self.name, "not_a_photograph", f"an artwork, the model says ({chance:.2f})"
                )

    def inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the model reads of B images and the question, on the CPU."""
        question = [{"type": "image"}, {"type": "text", "text": self.config.question}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        pad_id = self.model.config.image_token_id
        place = self.tokenizer.convert_ids_to_tokens(pad_id)
        pixels = self.images(images=list(images), return_tensors="pt")
        # An image takes one token for every square of patches that the model merges.
        counts = pixels["image_grid_thw"].prod(-1) // self.images.merge_size**2
        tokens = tokenize(
            self.tokenizer,
            [text.replace(place, place * count) for count in counts.tolist()],
            padding=True,
            padding_side="left",
        )
        return {**tokens, **pixels, "mm_token_type_ids": (tokens["input_ids"] == pad_id).long()}

    def _tokens_of(self, answer: str) -> set[int]:
        """First tokens of the ways to write an answer."""
        ways = (
            answer,
            answer.capitalize(),
            answer.upper(),
            f" {answer}",
            f" {answer.capitalize()}",
        )
        return {self.tokenizer(way).input_ids[0] for way in ways}

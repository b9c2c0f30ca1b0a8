"""Drops what is no photograph: a vision-language model is asked, and its yes or no decides.

By default the first token of the answer decides, whichever of "yes" and "no" is likelier, so that
there is always an answer. The released code asks of HPDv3 only, in words of its own, and reads the
generated text (`photographic.question=released`, `photographic.reading=text`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from PIL import Image

from raypref.core.config import Location, Resources, Section, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.core.rows import Row, reject
from raypref.images.decode import as_image, image_size
from raypref.models.hub import from_pretrained, model_folder
from raypref.rewards.base import moved, tokenize

if TYPE_CHECKING:
    from torch import Tensor

ANSWERS = ("yes", "no")
# Word for word what the released code asks.
RELEASED = (
    "You are an image classification assistant. Your task is to determine if the given image is an "
    "**artwork or anime style** image. Respond with **only** 'yes' if it is an artwork or anime "
    "style, and 'no' if it is not. Do not provide any other text or explanation."
)
ANSWER_TOKENS = 8  # the most that are read of an answer, as there


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
        "an image is kept when the answer is no; released: the question of the released code",
    )
    reading: Literal["logits", "text"] = setting(
        "logits",
        "logits: whichever of yes and no is likelier to begin the answer; text: the answer that is "
        "written, the likeliest token by token, keeps an image if it is no and nothing else",
        later=True,
    )
    resources: Resources = Resources(batch=4)

    @property
    def asked(self) -> str:
        """The question in words."""
        return RELEASED if self.question == "released" else self.question

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

    def shape_of(self, row: Row) -> tuple[int, int]:
        """Width and height of a row's image: they decide how many tokens it takes."""
        return image_size(row["chosen"])

    def prepare(self, rows: list[Row]) -> dict[str, Tensor]:
        """The model's inputs."""
        return self.inputs([as_image(row["chosen"]) for row in rows])

    def compute(self, batch: dict[str, Tensor]) -> Tensor | list[str]:
        """What the model says: B texts, or of "yes" and "no" the log-likelihood.

        That is up to a constant per image, float32 [B, 2].
        """
        return self.texts(batch) if self.config.reading == "text" else self.likelihoods(batch)

    def texts(self, batch: dict[str, Tensor]) -> list[str]:
        """The likeliest answers, token by token: B texts."""
        inputs = moved(batch, self.model.device)
        # No penalty of repetition: an answer would depend on what pads the rest of its batch.
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        ids_BL = self.model.generate(
            **inputs, **greedy, repetition_penalty=1.0, max_new_tokens=ANSWER_TOKENS
        )
        length = inputs["input_ids"].shape[1]
        found = self.tokenizer.batch_decode(ids_BL[:, length:], skip_special_tokens=True)
        return [text.strip().lower() for text in found]

    def likelihoods(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-likelihood, up to a constant per image, of "yes" and "no": float32 [B, 2]."""
        import torch

        logits_B1V = self.model(**moved(batch, self.model.device), logits_to_keep=1).logits
        last_BV = logits_B1V[:, -1].float().cpu()
        return torch.stack([last_BV[:, ids].logsumexp(-1) for ids in self.answers], -1)

    def finish(self, rows: list[Row], out: Tensor | list[str]) -> None:
        """Reject the artworks."""
        for row, answer in zip(rows, out, strict=False):
            if isinstance(answer, str):
                said = "" if answer == "no" else f"the model's answer is '{answer}'"
            else:
                chance = answer.softmax(0)[0].item()
                said = f"an artwork, the model says ({chance:.2f})" if answer[0] > answer[1] else ""
            if said:
                reject(row, self.name, "not_a_photograph", said)

    def inputs(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the model reads of B images and the question, on the CPU."""
        question = [{"type": "image"}, {"type": "text", "text": self.config.asked}]
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

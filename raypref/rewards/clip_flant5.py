"""CLIP-FlanT5, VQAScore's own model (Lin et al. 2024): a CLIP's patches read by a T5.

The checkpoints (`zhiqiulin/clip-flant5-xxl`, `-xl`) are of a class that transformers has not, made
of parts that it has. Tokenizer, and the configuration of the image tower, lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5ForConditionalGeneration,
)

from raypref.core.config import InputError
from raypref.core.device import DType, pick_device
from raypref.models.hub import read_json
from raypref.rewards import pixels
from raypref.rewards.base import moved, tokenize
from raypref.rewards.checkpoint import load_part
from raypref.rewards.vlm import pretrained

if TYPE_CHECKING:
    from raypref.rewards.vlm import Asked

# Around the question, as in training; the image stands between the two.
BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: "
)
AFTER = "\n{question} ASSISTANT: "
ANSWER = "Yes"
# What the checkpoints say of the parts; anything else is a model of another make.
MADE_OF = {"mm_vision_select_layer": -2, "mm_projector_type": "mlp2x_gelu"}


class ClipT5(T5ForConditionalGeneration):
    """A T5 whose encoder reads an image's patches among the words.

    Args:
        config: of the T5; `clip`, of the image tower, is among its attributes.
    """

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012, as transformers declares it
        *(T5ForConditionalGeneration._keys_to_ignore_on_load_unexpected or []),
        r"^embed_tokens\.",  # the encoder's, once more
        r"position_ids$",
    ]

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        clip = config.clip
        tower = nn.ModuleDict({"vision_model": CLIPVisionModel(clip)})
        self.vision_tower = nn.ModuleDict({"vision_tower": tower})
        width = config.d_model
        self.mm_projector = nn.Sequential(
            nn.Linear(clip.hidden_size, width), nn.GELU(), nn.Linear(width, width)
        )
        self.post_init()

    def patches(self, pixels_BCHW: Tensor) -> Tensor:
        """What the encoder reads of each image: [B, P, D], of the tower's last layer but one."""
        tower: Any = self.vision_tower["vision_tower"]["vision_model"]  # type: ignore[index]
        seen = tower(pixels_BCHW.to(self.dtype), output_hidden_states=True).hidden_states[-2]
        patches_BPD: Tensor = self.mm_projector(seen[:, 1:])
        return patches_BPD


class ClipFlanT5:
    """Answers of a CLIP-FlanT5 to questions about images, as likelihoods.

    Words that the tokenizer does not know are read as unknown; the release hides them.

    Args:
        folder: of the checkpoint.
        tokenizer: folder of the tokenizer.
        vision: folder with configuration and image processor of the image tower.
        keys: the configuration keys that the three came from, for errors.
        dtype: precision of the model.
        num_gpus: 0 runs on the CPU.

    Raises:
        InputError: a part is missing, damaged or of another make.
    """

    def __init__(
        self,
        folder: str,
        *,
        tokenizer: str,
        vision: str,
        keys: tuple[str, str, str],
        dtype: DType,
        num_gpus: float,
    ) -> None:
        model, words, images = keys
        config = t5_config(read_json(folder, "config.json", key=model), key=model)
        self.tokenizer: Any = load_part(AutoTokenizer, tokenizer, key=words)
        if len(self.tokenizer) > config.vocab_size:
            raise InputError(
                f"{words}: '{tokenizer}' has {len(self.tokenizer)} tokens, the model "
                f"{config.vocab_size}; it is the tokenizer of another model"
            )
        self.processor = load_part(CLIPImageProcessorPil, vision, key=images)
        config.clip = load_part(CLIPVisionConfig, vision, key=images)
        device = pick_device(num_gpus)
        self.model: ClipT5 = pretrained(
            ClipT5, folder, key=model, dtype=dtype, device=device, config=config
        )

    def prepare(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Asked:
        """What the model reads of B images and a question about each, on the CPU."""
        mean = tuple(int(255 * level) for level in self.processor.image_mean)
        squares = [squared(image.convert("RGB"), mean) for image in images]
        read_BCHW = self.processor(images=squares, return_tensors="pt")["pixel_values"]
        return self._asked(read_BCHW, questions)

    def prepare_pixels(self, pixels_BCHW: Tensor, questions: Sequence[str]) -> Asked:
        """The same of images as tensors, RGB in 0..1, with a gradient to them."""
        mean = [int(255 * level) for level in self.processor.image_mean]
        squares_BCHW = pixels.squared(pixels.precise(pixels_BCHW, self.model.device), mean)
        return self._asked(pixels.as_processor(self.processor, squares_BCHW), questions)

    def _asked(self, pixels_BCHW: Tensor, questions: Sequence[str]) -> Asked:
        # "</s>" and the like are words of a prompt.
        texts = [AFTER.replace("{question}", text.replace("<", "< ")) for text in questions]
        after = tokenize(self.tokenizer, texts, padding=True, padding_side="right")
        before = tokenize(self.tokenizer, [BEFORE] * len(texts))
        return {
            "pixels": pixels_BCHW,
            "before": before["input_ids"],
            "after": after["input_ids"],
            "mask": after["attention_mask"],
        }

    def next_token(self, asked: Asked) -> Tensor:
        """Log-probability of each token to begin the answer: float32 [B, V], on the CPU."""
        return self._answered(asked, [])[:, 0]

    def yes(self, asked: Asked) -> Tensor:
        """How likely the answer is "Yes": float32 [B], 0 to 1.

        As released: of its tokens, the end of the answer among them, the geometric mean.
        """
        ids: list[int] = self.tokenizer(ANSWER).input_ids
        log_BAV = self._answered(asked, ids[:-1])
        log_BA = log_BAV[:, torch.arange(len(ids)), torch.tensor(ids)]
        return log_BA.mean(dim=-1).exp()

    def _answered(self, asked: Asked, said: Sequence[int]) -> Tensor:
        """Log-probabilities of the token after the first 0, 1, ... of what was said, [B, A, V]."""
        on = moved(asked, self.model.device)
        embed = self.model.get_input_embeddings()
        patches_BPD = self.model.patches(on["pixels"])
        read_BLD = torch.cat([embed(on["before"]), patches_BPD, embed(on["after"])], dim=1)
        whole = on["mask"].new_ones(read_BLD.shape[0], read_BLD.shape[1] - on["mask"].shape[1])
        start = [self.model.config.decoder_start_token_id, *said]
        logits_BAV = self.model(
            inputs_embeds=read_BLD,
            attention_mask=torch.cat([whole, on["mask"]], dim=1),
            decoder_input_ids=torch.tensor([start] * len(read_BLD), device=self.model.device),
            use_cache=False,
        ).logits
        log_BAV: Tensor = logits_BAV.float().log_softmax(-1).cpu()
        return log_BAV


def t5_config(values: Mapping[str, Any], *, key: str) -> T5Config:
    """The configuration of the T5 of a checkpoint.

    Raises:
        InputError: the parts are put together in another way than in the published checkpoints.
    """
    for name, wanted in MADE_OF.items():
        if values.get(name) != wanted:
            raise InputError(
                f"{key}: its config.json has {name}={values.get(name)!r}; {wanted!r} is known"
            )
    own = {n: v for n, v in values.items() if n not in ("model_type", "architectures")}
    try:
        return T5Config(**own)
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: its config.json is not that of a T5: {error}") from None


def squared(image: Image.Image, level: tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of one colour, as long as its longer side."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), level)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square

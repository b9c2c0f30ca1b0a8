"""ImageReward: BLIP with a regression head, trained on rankings (Xu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.models.hub import model_folder, weight_file
from raypref.rewards.base import DifferentiableReward, moved, tokenize
from raypref.rewards.checkpoint import (
    linear_layers,
    load_part,
    load_state,
    read_state,
    require_names,
    require_vocabulary,
)
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

KEY = "rewards.imagereward.model"
TOKENIZER_KEY = "rewards.imagereward.tokenizer"
ORIGIN = "https://huggingface.co/THUDM/ImageReward (ImageReward.pt, 1.8 GB)"

# Of the released model's outputs on its training set: scores have mean 0 and variance 1 there.
MEAN = 0.16717362830052426
STD = 1.0333394966054072

CONTEXT = 35  # tokens a prompt is cut at
ADDED = 2  # tokens that BLIP adds to BERT's and no prompt has: [DEC] and [ENC]
HEAD_DIM = 64  # width of an attention head, in both towers of every BLIP

# The checkpoint's names -> transformers' names. A name without a leaf: its weight and bias.
VISION = "blip.visual_encoder."
VISION_TOP = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
VISION_LAYER = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
TEXT = "blip.text_encoder."  # what follows is named as in transformers
TEXT_TOP = (
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
)
TEXT_LAYER = (
    *(f"attention.self.{part}" for part in ("query", "key", "value")),
    *("attention.output.dense", "attention.output.LayerNorm"),
    *(f"crossattention.self.{part}" for part in ("query", "key", "value")),
    *("crossattention.output.dense", "crossattention.output.LayerNorm"),
    *("intermediate.dense", "output.dense", "output.LayerNorm"),
)
HEAD = "mlp."
HEAD_LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")  # dropout between
# In the file, but not in the score: an index buffer, and the projections of BLIP's contrastive
# pre-training. Files written by newer versions lack some.
UNUSED = (
    "blip.text_encoder.embeddings.position_ids",
    *(f"blip.{tower}_proj.{leaf}" for tower in ("vision", "text") for leaf in ("weight", "bias")),
)


class ImageRewardConfig(RewardConfig):
    """Which checkpoint, and the tokenizer it was trained with."""

    label: ClassVar[str] = "ImgRwd"
    spelt_out: ClassVar[str] = "ImageReward"
    differentiable: ClassVar[bool] = True

    model: Location = setting(
        "THUDM/ImageReward/ImageReward.pt", "checkpoint: a file, or OWNER/REPO/FILE on the hub"
    )
    tokenizer: Location = setting(
        "google-bert/bert-base-uncased", "hub id or folder of BERT's uncased tokenizer"
    )
    dtype: DType = setting("float32", "precision of BLIP; the head is float32")
    resources: Resources = Resources(batch=16)

    def check(self) -> None:
        """Fail before any work.

        Raises:
            InputError: checkpoint or tokenizer is not there; says where to get it.
        """
        self.files()

    def files(self) -> tuple[Path, str]:
        """The checkpoint's path, and what to hand to `hub.from_pretrained` for the tokenizer."""
        probe = "tokenizer_config.json"
        tokenizer = model_folder(self.tokenizer, key=TOKENIZER_KEY, probe=probe)
        return weight_file(self.model, key=KEY, origin=ORIGIN), tokenizer

    def load(self) -> ImageReward:
        """Load the model onto its device."""
        return ImageReward(self)


class Parts(NamedTuple):
    """What a checkpoint holds, float32, on the CPU."""

    vision: BlipVisionModel
    text: BlipTextModel
    head: nn.Sequential


class BlipInputs(NamedTuple):
    """What the model reads, on the CPU."""

    pixels_BCHW: Tensor
    tokens: Mapping[str, Tensor]


class ImageReward(DifferentiableReward):
    """Mean 0 and variance 1 on its training set, so about -2..2; 0.2..1.3 for today's models.

    The prompt's tokens attend to each other and to the image's patches; the head reads the first
    token (`[CLS]`), in float32, and its output is normalised by the released mean and deviation.
    The image comes in as CLIP's would (shortest side, centre crop), not squashed as BLIP's own.
    """

    def __init__(self, config: ImageRewardConfig) -> None:
        from transformers import BertTokenizer, CLIPImageProcessorPil

        path, tokenizer = config.files()
        vision, text, head = load_checkpoint(path)
        self.tokenizer = load_part(BertTokenizer, tokenizer, key=TOKENIZER_KEY)
        vocabulary = text.config.vocab_size - ADDED
        require_vocabulary(self.tokenizer, vocabulary, key=TOKENIZER_KEY, source=tokenizer)
        side: Any = vision.config.image_size  # an int: `vision_config` made it
        self.image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        self.device, dtype = pick_device(config.resources.num_gpus), torch_dtype(config.dtype)
        self.vision = vision.to(device=self.device, dtype=dtype)
        self.text = text.to(device=self.device, dtype=dtype)
        self.head = head.to(self.device)
        for part in (self.vision, self.text, self.head):
            part.eval().requires_grad_(False)

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> BlipInputs:
        """Pixels, and tokens (cut at 35)."""
        pixels = self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return BlipInputs(pixels, self._tokens(prompts))

    def compute(self, batch: BlipInputs) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return self._score(batch.pixels_BCHW, batch.tokens).cpu().numpy()

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]."""
        from raypref.rewards.pixels import as_processor, precise

        read_BCHW = as_processor(self.image_processor, precise(pixels_BCHW, self.device))
        return self._score(read_BCHW, self._tokens(prompts))

    def _tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        cut = {"padding": "max_length", "truncation": True, "max_length": CONTEXT}
        return tokenize(self.tokenizer, prompts, **cut)

    def _score(self, pixels_BCHW: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        tokens = moved(tokens, self.device)
        patches_BND = self.vision(
            pixel_values=pixels_BCHW.to(self.device, self.vision.dtype)
        ).last_hidden_state
        first_BD = self.text(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            encoder_hidden_states=patches_BND,
            is_decoder=False,  # no causal mask
        ).last_hidden_state[:, 0]
        raw_B = self.head(first_BD.float())[:, 0]
        return (raw_B - MEAN) / STD


def key_table(vision_layers: int, text_layers: int) -> dict[str, str]:
    """Every name of a checkpoint that counts -> `vision.`, `text.` or `head.` and its own name."""
    table = {VISION + name: f"vision.{ours}" for name, ours in VISION_TOP.items()}
    table |= {TEXT + name: f"text.{name}" for name in TEXT_TOP}
    for leaf in ("weight", "bias"):
        for i in range(vision_layers):
            for name, ours in VISION_LAYER.items():
                table[f"{VISION}blocks.{i}.{name}.{leaf}"] = (
                    f"vision.encoder.layers.{i}.{ours}.{leaf}"
                )
        for i in range(text_layers):
            for name in TEXT_LAYER:
                place = f"encoder.layer.{i}.{name}.{leaf}"
                table[TEXT + place] = f"text.{place}"
        table |= {f"{HEAD}{layer}.{leaf}": f"head.{layer}.{leaf}" for layer in HEAD_LAYERS}
    return table


def load_checkpoint(path: Path) -> Parts:
    """Both towers and the head of a checkpoint, of any size: its shapes say which.

    Raises:
        InputError: the file is damaged or of another model.
    """
    from transformers import BlipTextModel, BlipVisionModel

    origin = f"ImageReward, from {ORIGIN}"
    state = read_state(path, key=KEY, origin=origin)
    state = {name: tensor for name, tensor in state.items() if name not in UNUSED}
    table = key_table(_depth(state, f"{VISION}blocks."), _depth(state, f"{TEXT}encoder.layer."))
    require_names(state, table, key=KEY, path=path, origin=origin)
    vision, text, head = (
        {
            ours.removeprefix(part): state[name]
            for name, ours in table.items()
            if ours.startswith(part)
        }
        for part in ("vision.", "text.", "head.")
    )
    where: dict[str, Any] = {"key": KEY, "path": path, "origin": origin}
    text_model = load_state(
        BlipTextModel, text_config(text), text, add_pooling_layer=False, **where
    )
    return Parts(
        vision=load_state(BlipVisionModel, vision_config(vision), vision, **where),
        text=text_model,
        head=linear_layers(head, HEAD_LAYERS, width=text_model.config.hidden_size, **where),
    )


def vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    """The image tower that tensors under transformers' names belong to."""
    from transformers import BlipVisionConfig

    width, _, _, patch = state["embeddings.patch_embedding.weight"].shape
    places = state["embeddings.position_embedding"].shape[1] - 1  # one is the class token's
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_depth(state, "encoder.layers."),
        num_attention_heads=width // HEAD_DIM,
        image_size=isqrt(places) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,  # of the official code; the default here is 1e-5
    )


def text_config(state: Mapping[str, Tensor]) -> BlipTextConfig:
    """The text tower that tensors under transformers' names belong to."""
    from transformers import BlipTextConfig

    vocabulary, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_depth(state, "encoder.layer."),
        num_attention_heads=width // HEAD_DIM,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        is_decoder=True,  # in transformers' BLIP: has cross attention
        bos_token_id=None,  # BERT's own are not of the vocabulary of a small model
        eos_token_id=None,
        sep_token_id=None,
    )


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    """Layers under a prefix; at least the first, so that an error can name what it lacks."""
    layers = {name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)}
    return max(1, len(layers))

"""HPSv2 and HPSv2.1: open_clip's ViT-H/14 tuned on human choices (Wu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.models.hub import model_folder, weight_file
from raypref.rewards.base import DifferentiableReward, Embedder
from raypref.rewards.checkpoint import load_part, load_state, read_state, require_names
from raypref.rewards.clip import Clip, FromPixels, Inputs, Pixels, load_tokenizer, scores
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPModel

KEY = "rewards.hpsv2.model"
BASE_KEY = "rewards.hpsv2.base"
ORIGIN = "https://huggingface.co/xswu/HPSv2 (HPS_v2_compressed.pt or HPS_v2.1_compressed.pt)"

# open_clip's names -> transformers' names. A name without a leaf stands for its weight and bias.
TOP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
TRANSPOSED = ("text_projection", "visual.proj")  # x @ W there, a linear layer here
TOWERS = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
LAYER = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
ATTENTION = ("q_proj", "k_proj", "v_proj")  # the rows of in_proj, in this order


class HPSv2Config(RewardConfig):
    """Which checkpoint, and the model it was tuned from."""

    label: ClassVar[str] = "HPSv2"
    digits: ClassVar[int] = 3
    differentiable: ClassVar[bool] = True

    model: Location = setting(
        "xswu/HPSv2/HPS_v2.1_compressed.pt",
        "checkpoint: a file, or OWNER/REPO/FILE on the hub (HPS_v2_compressed.pt is version 2.0)",
    )
    base: Location = setting(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "hub id or folder of the model it was tuned from: its config and tokenizer are used",
    )
    dtype: DType = setting("float32", "precision of the model")
    resources: Resources = Resources(batch=16)

    def check(self) -> None:
        """Fail before any work.

        Raises:
            InputError: checkpoint or base is not there; says where to get it.
        """
        self.files()

    def files(self) -> tuple[Path, str]:
        """The checkpoint's path, and what to hand to `hub.from_pretrained` for the base."""
        model_folder(self.base, key=BASE_KEY, probe="tokenizer_config.json")
        base = model_folder(self.base, key=BASE_KEY, probe="config.json")
        return weight_file(self.model, key=KEY, origin=ORIGIN), base

    def load(self) -> HPSv2:
        """Load the model onto its device."""
        return HPSv2(self)


class HPSv2(DifferentiableReward, Embedder):
    """100 x cosine of image and text embedding, about 20..32 for real weights.

    The published tables have this scale; the package's `score()` returns the cosine itself.
    Prompts are tokenised by transformers: open_clip's also repairs broken Unicode, straightens
    curly quotes and resolves HTML entities.
    """

    def __init__(self, config: HPSv2Config) -> None:
        from transformers import CLIPConfig

        path, base = config.files()
        clip = load_part(CLIPConfig, base, key=BASE_KEY)
        model = load_open_clip(path, clip)
        device = pick_device(config.resources.num_gpus)
        self.clip = Clip(
            model.to(device=device, dtype=torch_dtype(config.dtype)),
            load_tokenizer(base, model, key=BASE_KEY),
            letterboxed(clip.vision_config.image_size),
            letterboxed_pixels(clip.vision_config.image_size),
        )

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's input, float32 [B, 3, H, W]."""
        return self.clip.pixels(images)

    def features(self, pixels: Tensor) -> np.ndarray:
        """Image embeddings of unit length, float32 [B, D]."""
        return scores(self.clip.images(pixels))

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Inputs:
        """Pixels and tokens (cut at 77)."""
        return self.clip.prepare(images, prompts)

    def compute(self, batch: Inputs) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return scores(100 * self.clip.cosines(batch))

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]."""
        text_BD = self.clip.texts(self.clip.tokens(prompts))
        return 100 * (self.clip.seen(pixels_BCHW) * text_BD).sum(dim=-1)


def letterboxed(side: int) -> Pixels:
    """The input as the HPSv2 package makes it: the whole image, padded to a square.

    Its model was not tuned on open_clip's own recipe (shortest side, centre crop): the longest
    side becomes `side`, by antialiased bicubic resampling of the float tensor, and black is added
    at both ends of the other. Square images are not padded.
    """
    import torch

    boxed = letterboxed_pixels(side)

    def prepared(image: Image.Image) -> Tensor:
        levels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        return boxed(levels[None] / 255)[0]

    return lambda images: torch.stack([prepared(image) for image in images])


def letterboxed_pixels(side: int) -> FromPixels:
    """The same of images as tensors, with a gradient."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    from raypref.rewards import pixels

    def boxed(pixels_BCHW: Tensor) -> Tensor:
        inside_BCHW = pixels.letterboxed(pixels_BCHW, side)
        return pixels.normalised(inside_BCHW, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)

    return boxed


def key_table(text_layers: int, vision_layers: int) -> dict[str, tuple[str, ...]]:
    """Every name of an open_clip checkpoint -> the names its rows get in `CLIPModel`."""
    table: dict[str, tuple[str, ...]] = {name: (ours,) for name, ours in TOP.items()}
    for (tower, own), depth in zip(TOWERS.items(), (text_layers, vision_layers), strict=True):
        for i in range(depth):
            for leaf in ("weight", "bias"):
                split = tuple(f"{own}.{i}.self_attn.{part}.{leaf}" for part in ATTENTION)
                table[f"{tower}.{i}.attn.in_proj_{leaf}"] = split
                for name, ours in LAYER.items():
                    table[f"{tower}.{i}.{name}.{leaf}"] = (f"{own}.{i}.{ours}.{leaf}",)
    return table


def to_transformers(
    state: Mapping[str, Tensor], table: Mapping[str, tuple[str, ...]]
) -> dict[str, Tensor]:
    """An open_clip state dict, complete, under `CLIPModel`'s names and in its layout."""
    converted: dict[str, Tensor] = {}
    for name, ours in table.items():
        tensor = state[name].T if name in TRANSPOSED else state[name]
        parts = tensor.chunk(len(ours)) if len(ours) > 1 else (tensor,)
        converted.update(zip(ours, parts, strict=True))
    return converted


def load_open_clip(path: Path, config: Any) -> CLIPModel:
    """The model of an open_clip checkpoint, float32, on the CPU.

    Args:
        path: the checkpoint.
        config: the `CLIPConfig` of the architecture.

    Raises:
        InputError: the file is damaged, or names or shapes are not those of the configuration.
    """
    from transformers import CLIPModel

    where: dict[str, Any] = {"key": KEY, "path": path, "origin": f"HPSv2, from {ORIGIN}"}
    for tower in (config.text_config, config.vision_config):
        tower.hidden_act = "gelu"  # of open_clip's ViT-H-14, whatever the base says
    depths = (config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers)
    table = key_table(*depths)
    state = read_state(path, key=KEY, origin=where["origin"])
    require_names(state, table, **where)
    return load_state(CLIPModel, config, to_transformers(state, table), **where)

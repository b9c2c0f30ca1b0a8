"""CLIPScore: how close an untuned CLIP puts an image to its prompt (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.rewards.base import DifferentiableReward, EmbeddingReward
from raypref.rewards.clip import Inputs, clip_folder, load_clip, scores
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rewards.clipscore.model"

# Hessel et al., section 3: the weight that spreads cosines over about 0..1, and the words they
# put before a caption.
HESSEL_WEIGHT = 2.5
HESSEL_PREFIX = "A photo depicts "


class ClipScoreConfig(RewardConfig):
    """Which CLIP, and on which scale."""

    label: ClassVar[str] = "CLIPScore"
    differentiable: ClassVar[bool] = True
    embeds: ClassVar[bool] = True

    model: Location = setting(
        "openai/clip-vit-large-patch14", "hub id or folder of a CLIP model with its processor"
    )
    variant: Literal["percent", "hessel", "cosine"] = setting(
        "percent",
        "percent: 100 max(cos, 0); hessel: 2.5 max(cos, 0), prompt after 'A photo depicts'; cosine",
    )
    dtype: DType = setting("float32", "precision of the model")
    resources: Resources = Resources(batch=16)

    def check(self) -> None:
        """Fail before any work.

        Raises:
            InputError: the model is not there; says where to get it.
        """
        clip_folder(self.model, key=KEY)

    def load(self) -> ClipScore:
        """Load the model onto its device."""
        return ClipScore(self)


class ClipScore(DifferentiableReward, EmbeddingReward):
    """The scale of text-to-image papers by default: 100 max(cos, 0), about 20..35.

    `percent` is what torchmetrics' `CLIPScore` computes for each image, `hessel` the original
    (its paper used ViT-B/32, its prefix and weight 2.5), `cosine` the raw -1..1 of Diffusion-DRO
    (there with ViT-H/14). Different models' numbers are not comparable on any scale.
    """

    def __init__(self, config: ClipScoreConfig) -> None:
        self.variant = config.variant
        self.clip = load_clip(
            clip_folder(config.model, key=KEY),
            key=KEY,
            device=pick_device(config.resources.num_gpus),
            dtype=torch_dtype(config.dtype),
        )

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's input, float32 [B, 3, H, W]."""
        return self.clip.pixels(images)

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts' tokens, cut at 77."""
        if self.variant == "hessel":
            prompts = [HESSEL_PREFIX + prompt for prompt in prompts]
        return self.clip.tokens(prompts)

    def features(self, pixels: Tensor) -> np.ndarray:
        """Image embeddings of unit length, float32 [B, D]."""
        return scores(self.clip.images(pixels))

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Inputs:
        """Pixels and tokens."""
        return Inputs(self.pixels(images), self.tokens(prompts))

    def compute(self, batch: Inputs) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return scores(self._score(self.clip.images(batch.pixels_BCHW), batch.tokens))

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]; none where a clamped cosine is negative."""
        return self._score(self.clip.seen(pixels_BCHW), self.tokens(prompts))

    def score_embedded(self, embeddings: np.ndarray, tokens: Mapping[str, Tensor]) -> np.ndarray:
        """The same for images that `embed` has seen: float32 [B] from float32 [B, D]."""
        import torch

        image_BD = torch.from_numpy(embeddings).to(self.clip.model.device)
        return scores(self._score(image_BD, tokens))

    def _score(self, image_BD: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        cosine_B = (image_BD * self.clip.texts(tokens)).sum(dim=-1)
        if self.variant == "cosine":
            return cosine_B
        weight = 100.0 if self.variant == "percent" else HESSEL_WEIGHT
        return weight * cosine_B.clamp(min=0)

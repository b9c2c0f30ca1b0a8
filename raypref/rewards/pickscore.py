"""PickScore: a CLIP ViT-H/14 tuned on human choices (Kirstain et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.models.hub import from_pretrained, model_folder
from raypref.rewards.base import EmbeddingReward, Reward, moved
from raypref.rewards.clip import Inputs, tokens_of
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor


class PickScoreConfig(RewardConfig):
    """Which PickScore weights, where and how."""

    label: ClassVar[str] = "PickScore"
    differentiable: ClassVar[bool] = True
    embeds: ClassVar[bool] = True

    model: Location = setting("yuvalkirstain/PickScore_v1", "hub id or folder of the CLIP model")
    processor: Location = setting(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "hub id or folder of its processor"
    )
    dtype: DType = setting("float32", "precision of the model")
    resources: Resources = Resources(batch=16)

    def model_folder(self) -> str:
        """What to hand to `hub.from_pretrained` for the model."""
        return model_folder(self.model, key="pickscore.model", probe="config.json")

    def processor_folder(self) -> str:
        """What to hand to `hub.from_pretrained` for image processor and tokenizer."""
        probe = "preprocessor_config.json"
        return model_folder(self.processor, key="pickscore.processor", probe=probe)

    def check(self) -> None:
        """Look for the weights before any work is done."""
        self.model_folder()
        self.processor_folder()

    def load(self) -> PickScore:
        """Load the model onto its device."""
        return PickScore(self)


class PickScore(Reward, EmbeddingReward):
    """exp(logit_scale) * cosine of image and text embedding, about 20 for real weights.

    Flow-GRPO divides this by 26; the paper and this project do not.
    """

    def __init__(self, config: PickScoreConfig) -> None:
        import torch
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        model, processor = config.model_folder(), config.processor_folder()
        self.device = pick_device(config.resources.num_gpus)
        # By name: CLIPProcessor resizes with torchvision where there is one, and scores differ.
        self.image_processor = from_pretrained(CLIPImageProcessorPil, processor)
        self.tokenizer = from_pretrained(CLIPTokenizer, processor)
        self.model = from_pretrained(CLIPModel, model, dtype=torch.float32)
        self.scale = self.model.logit_scale.exp().item()  # bfloat16 would make 99 of its 100
        self.model.to(device=self.device, dtype=torch_dtype(config.dtype))
        self.model.eval().requires_grad_(False)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's input, float32 [B, 3, H, W]."""
        pixels: Tensor = self.image_processor(images=list(images), return_tensors="pt")[
            "pixel_values"
        ]
        return pixels

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts' tokens, cut at 77."""
        return tokens_of(self.tokenizer, prompts)

    def features(self, pixels: Tensor) -> np.ndarray:
        """Image embeddings of unit length, float32 [B, D]."""
        return self._image_features(pixels).cpu().numpy()

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Inputs:
        """Pixels and tokens."""
        return Inputs(self.pixels(images), self.tokens(prompts))

    def compute(self, batch: Inputs) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return self._score(self._image_features(batch.pixels_BCHW), batch.tokens)

    def score_embedded(self, embeddings: np.ndarray, tokens: Mapping[str, Tensor]) -> np.ndarray:
        """The same for images that `embed` has seen: float32 [B] from float32 [B, D]."""
        import torch

        return self._score(torch.from_numpy(embeddings).to(self.device), tokens)

    def _score(self, image_BD: Tensor, tokens: Mapping[str, Tensor]) -> np.ndarray:
        from torch.nn.functional import cosine_similarity

        text_BD = self.model.get_text_features(**moved(tokens, self.device)).pooler_output
        cosine_B = cosine_similarity(image_BD, text_BD.float())
        return (self.scale * cosine_B).cpu().numpy()

    def _image_features(self, pixels_BCHW: Tensor) -> Tensor:
        from torch.nn.functional import normalize

        features_BD = self.model.get_image_features(
            pixel_values=pixels_BCHW.to(self.device, self.model.dtype)
        ).pooler_output
        return normalize(features_BD.float(), dim=-1)

"""DINOv2 embeddings of images, for metrics that compare whole sets (Oquab et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.models.hub import model_folder
from raypref.rewards.base import Embedder
from raypref.rewards.checkpoint import load_folder, load_part
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rewards.dinov2.model"


class DinoV2Config(RewardConfig):
    """Which DINOv2."""

    label: ClassVar[str] = "DINOv2"
    scores: ClassVar[bool] = False
    embeds: ClassVar[bool] = True

    model: Location = setting(
        "facebook/dinov2-large", "hub id or folder of a DINOv2 model with its image processor"
    )
    dtype: DType = setting("float32", "precision of the model")
    resources: Resources = Resources(batch=16)

    def check(self) -> None:
        """Fail before any work.

        Raises:
            InputError: the model is not there; says where to get it.
        """
        self.folder()

    def folder(self) -> str:
        """What to hand to `hub.from_pretrained`."""
        model_folder(self.model, key=KEY, probe="config.json")
        return model_folder(self.model, key=KEY, probe="preprocessor_config.json")

    def load(self) -> DinoV2:
        """Load the model onto its device."""
        return DinoV2(self)


class DinoV2(Embedder):
    """The class token after the last layer norm, of unit length. No prompt, no score.

    Stein et al. 2023 found distances on these embeddings to agree with people where Inception's
    and CLIP's do not. Images go through the model's own processor (shortest side 256, bicubic;
    centre crop 224).
    """

    def __init__(self, config: DinoV2Config) -> None:
        from transformers import BitImageProcessorPil, Dinov2Model

        folder = config.folder()
        self.device = pick_device(config.resources.num_gpus)
        self.image_processor = load_part(BitImageProcessorPil, folder, key=KEY)
        self.model = load_folder(Dinov2Model, folder, key=KEY)
        self.model.to(device=self.device, dtype=torch_dtype(config.dtype))
        self.model.eval().requires_grad_(False)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's input, float32 [B, 3, H, W]."""
        return self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]

    def features(self, pixels: Tensor) -> np.ndarray:
        """Embeddings of unit length, float32 [B, D]."""
        from torch.nn.functional import normalize

        features_BD = self.model(
            pixel_values=pixels.to(self.device, self.model.dtype)
        ).pooler_output
        return normalize(features_BD.float(), dim=-1).cpu().numpy()

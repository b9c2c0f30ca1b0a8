"""LAION's aesthetic predictors: a head on CLIP's image embedding, trained on people's ratings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import InputError, Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.models.hub import weight_file
from raypref.rewards.base import Reward
from raypref.rewards.checkpoint import linear_layers, load_part, read_state, require_names
from raypref.rewards.clip import clip_folder, load_clip, scores
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

KEY = "rewards.aesthetic.model"
HEAD_KEY = "rewards.aesthetic.head"
HEADS = "a LAION aesthetic head"
ORIGIN = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor (sac+logos+ava1-l14-"
    "linearMSE.pth) or https://github.com/LAION-AI/aesthetic-predictor (sa_0_4_vit_*_linear.pth)"
)

# Places of the linear layers in the improved predictor; dropout takes the others.
LAYERS = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")

# The embedding's width -> CLIP models whose heads LAION trained.
CLIPS = {
    512: "openai/clip-vit-base-patch32 (sa_0_4_vit_b_32) or -patch16 (sa_0_4_vit_b_16)",
    768: "openai/clip-vit-large-patch14",
}


class AestheticConfig(RewardConfig):
    """Which head, on which CLIP. A 512-wide head fits two models: its file name says which."""

    label: ClassVar[str] = "Aes"
    spelt_out: ClassVar[str] = "LAION aesthetic classifier"
    differentiable: ClassVar[bool] = True

    model: Location = setting(
        "openai/clip-vit-large-patch14", "hub id or folder of the CLIP model the head belongs to"
    )
    head: Location = setting(
        "sac+logos+ava1-l14-linearMSE.pth", "head: a file, or OWNER/REPO/FILE on the hub"
    )
    dtype: DType = setting("float32", "precision of the CLIP model; the head is float32")
    resources: Resources = Resources(batch=16)

    def check(self) -> None:
        """Fail before any work.

        Raises:
            InputError: model or head is not there, or the head does not fit the model.
        """
        _fitting_head(self)

    def load(self) -> Aesthetic:
        """Load the model onto its device."""
        return Aesthetic(self)


class Aesthetic(Reward):
    """About 1..10; 5.5 for the images of Stable Diffusion. The prompt does not count.

    The embedding is brought to unit length and goes through the head in float32. Neither head has
    a non-linearity: the improved one (`sac+logos+ava1`) is five linear layers in a row, `sa_0_4`
    is one. Their scales differ: name the head beside every number.
    """

    def __init__(self, config: AestheticConfig) -> None:
        head = _fitting_head(config)
        device = pick_device(config.resources.num_gpus)
        self.head = head.to(device).eval()
        self.clip = load_clip(
            clip_folder(config.model, key=KEY),
            key=KEY,
            device=device,
            dtype=torch_dtype(config.dtype),
        )

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """The CLIP model's input. The prompts are not looked at."""
        return self.clip.pixels(images)

    def compute(self, batch: Tensor) -> np.ndarray:
        """Score B images: float32 [B]."""
        return scores(self.head(self.clip.images(batch))[:, 0])


def load_head(path: Path) -> nn.Sequential:
    """The linear layers of a head file, float32: [B, width] to [B, 1].

    Raises:
        InputError: it is none of LAION's heads.
    """
    where: dict[str, Any] = {"key": HEAD_KEY, "path": path, "origin": HEADS}
    state = read_state(path, key=HEAD_KEY, origin=HEADS)
    if set(state) == {"weight", "bias"}:
        state = {f"linear.{name}": tensor for name, tensor in state.items()}
        return linear_layers(state, ["linear"], **where)
    require_names(state, [f"{x}.{leaf}" for x in LAYERS for leaf in ("weight", "bias")], **where)
    return linear_layers(state, LAYERS, **where)


def _fitting_head(config: AestheticConfig) -> nn.Sequential:
    from transformers import CLIPConfig

    path = weight_file(config.head, key=HEAD_KEY, origin=ORIGIN)
    clip = load_part(CLIPConfig, clip_folder(config.model, key=KEY), key=KEY)
    head = load_head(path)
    width = next(head.parameters()).shape[1]
    if width != clip.projection_dim:
        fitting = CLIPS.get(width, "the CLIP model it was trained on")
        raise InputError(
            f"{HEAD_KEY}: '{path.name}' reads embeddings of {width}, but those of {KEY}="
            f"{config.model} have {clip.projection_dim}; set {KEY}={fitting}, or another head"
        )
    return head

"""LAION's aesthetic predictors: a head on CLIP's image embedding, trained on people's ratings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import InputError, Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.engine.loaded import shared
from raypref.models.hub import weight_file
from raypref.rewards.base import DifferentiableReward
from raypref.rewards.checkpoint import linear_layers, load_part, read_state, require_names
from raypref.rewards.clip import clip_folder, load_clip, scores
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

SECTION = "rewards.aesthetic"
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
    origin: ClassVar[str] = ORIGIN  # where a person gets a head, for errors
    differentiable: ClassVar[bool] = True

    model: Location = setting(
        "openai/clip-vit-large-patch14", "hub id or folder of the CLIP model the head belongs to"
    )
    head: Location = setting(
        "sac+logos+ava1-l14-linearMSE.pth", "head: a file, or OWNER/REPO/FILE on the hub"
    )
    dtype: DType = setting("float32", "precision of the CLIP model; the head is float32")
    resources: Resources = Resources(batch=16)

    @property
    def section(self) -> str:
        """What stands before its keys, for errors."""
        return SECTION

    def check(self) -> None:
        """Fail before any work.

        Raises:
            InputError: model or head is not there, or the head does not fit the model.
        """
        _fitting_head(self)

    def load(self) -> Aesthetic:
        """Load the model onto its device."""
        return Aesthetic(self)


class Aesthetic(DifferentiableReward):
    """About 1..10; 5.5 for the images of Stable Diffusion. The prompt does not count.

    The embedding is brought to unit length and goes through the head in float32. Neither head has
    a non-linearity: the improved one (`sac+logos+ava1`) is five linear layers in a row, `sa_0_4`
    is one. Their scales differ: name the head beside every number.
    """

    def __init__(self, config: AestheticConfig) -> None:
        head = _fitting_head(config)
        device = pick_device(config.resources.num_gpus)
        self.head = head.to(device).eval()
        key = f"{config.section}.model"
        self.clip = shared(  # by all heads on this model
            ("clip", config.model, config.dtype, device),
            lambda: load_clip(
                clip_folder(config.model, key=key),
                key=key,
                device=device,
                dtype=torch_dtype(config.dtype),
            ),
        )

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """The CLIP model's input. The prompts are not looked at."""
        return self.clip.pixels(images)

    def compute(self, batch: Tensor) -> np.ndarray:
        """Score B images: float32 [B]."""
        return scores(self.head(self.clip.images(batch))[:, 0])

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]."""
        return self.head(self.clip.seen(pixels_BCHW).float())[:, 0]


def load_head(path: Path, *, key: str = f"{SECTION}.head") -> nn.Sequential:
    """The linear layers of a head file, float32: [B, width] to [B, 1].

    Args:
        path: `weight` and `bias` of one layer, or the five layers of the improved predictor.
        key: the configuration key it came from, for the error.

    Raises:
        InputError: it has the layers of none of LAION's heads.
    """
    where: dict[str, Any] = {"key": key, "path": path, "origin": HEADS}
    state = read_state(path, key=key, origin=HEADS)
    if set(state) == {"weight", "bias"}:
        state = {f"linear.{name}": tensor for name, tensor in state.items()}
        return linear_layers(state, ["linear"], **where)
    require_names(state, [f"{x}.{leaf}" for x in LAYERS for leaf in ("weight", "bias")], **where)
    return linear_layers(state, LAYERS, **where)


def _fitting_head(config: AestheticConfig) -> nn.Sequential:
    from transformers import CLIPConfig

    key, head_key = f"{config.section}.model", f"{config.section}.head"
    path = weight_file(config.head, key=head_key, origin=config.origin)
    clip = load_part(CLIPConfig, clip_folder(config.model, key=key), key=key)
    head = load_head(path, key=head_key)
    width = next(head.parameters()).shape[1]
    if width != clip.projection_dim:
        fitting = CLIPS.get(width, "the CLIP model it was trained on")
        raise InputError(
            f"{head_key}: '{path.name}' reads embeddings of {width}, but those of {key}="
            f"{config.model} have {clip.projection_dim}; set {key}={fitting}, or another head"
        )
    return head

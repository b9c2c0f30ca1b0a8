"""PE-Core: how close Meta's Perception Encoder puts an image to its prompt (Bolya et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import InputError, Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.models.hub import model_folder, weight_file
from raypref.rewards.base import DifferentiableReward, Embedder, tokenize
from raypref.rewards.checkpoint import (
    load_part,
    read_state,
    require_names,
    require_shapes,
    require_vocabulary,
)
from raypref.rewards.clip import Inputs, scores
from raypref.rewards.config import RewardConfig

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.models.perception_encoder import PerceptionEncoder

KEY = "rewards.perception.model"
TOKENIZER_KEY = "rewards.perception.tokenizer"
ORIGIN = "https://huggingface.co/facebook (PE-Core-G14-448, PE-Core-L14-336, PE-Core-B16-224)"


class PerceptionConfig(RewardConfig):
    """Which PE-Core checkpoint; its sizes are read off its tensors."""

    label: ClassVar[str] = "PE"
    spelt_out: ClassVar[str] = "Perception Encoder, PE-Core"
    differentiable: ClassVar[bool] = True
    large: ClassVar[bool] = True

    model: Location = setting(
        "facebook/PE-Core-G14-448/PE-Core-G14-448.pt",
        "checkpoint: a file, or OWNER/REPO/FILE on the hub; PE-Core-L14-336 and PE-Core-B16-224 "
        "have the same form",
    )
    tokenizer: Location = setting(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "hub id or folder of a CLIP tokenizer: PE-Core reads the same tokens",
    )
    dtype: DType = setting("float32", "precision of the model")
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

    def load(self) -> Perception:
        """Load the model onto its device."""
        return Perception(self)


class Perception(DifferentiableReward, Embedder):
    """exp(logit_scale) * cosine of image and text embedding.

    The image is squashed to the model's square, not cropped. Prompts are cut at the model's
    context, 72 tokens of G14-448 and 32 of the smaller ones, and tokenised by transformers: the
    release's own tokenizer also repairs broken Unicode and resolves HTML entities.
    """

    def __init__(self, config: PerceptionConfig) -> None:
        from transformers import CLIPTokenizer

        path, tokenizer = config.files()
        self.model = load_perception(path)
        size = self.model.visual.size
        self.side, self.context = size.grid * size.patch, size.context
        self.tokenizer = load_part(CLIPTokenizer, tokenizer, key=TOKENIZER_KEY)
        require_vocabulary(self.tokenizer, size.vocabulary, key=TOKENIZER_KEY, source=tokenizer)
        self.device = pick_device(config.resources.num_gpus)
        self.dtype = torch_dtype(config.dtype)
        self.scale = self.model.logit_scale.exp().item()  # bfloat16 would round it
        self.model.to(device=self.device, dtype=self.dtype)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's input, float32 [B, 3, S, S] in -1..1."""
        import torch

        square = (self.side, self.side)
        resized = [image.resize(square, Image.Resampling.BILINEAR) for image in images]
        levels = np.stack([np.asarray(image.convert("RGB")) for image in resized])
        return torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def features(self, pixels: Tensor) -> np.ndarray:
        """Image embeddings of unit length, float32 [B, D]."""
        return scores(self._images(pixels))

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Inputs:
        """Pixels and tokens."""
        return Inputs(self.pixels(images), {"input_ids": self._ids(prompts)})

    def compute(self, batch: Inputs) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        text_BD = self._texts(batch.tokens["input_ids"])
        return scores(self.scale * (self._images(batch.pixels_BCHW) * text_BD).sum(dim=-1))

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]."""
        from raypref.rewards.pixels import precise, resized, unit

        square = (self.side, self.side)
        square_BCHW = resized(precise(pixels_BCHW, self.device), square, mode="bilinear")
        image_BD = unit(self.model.images((square_BCHW * 2 - 1).to(self.dtype)))
        return self.scale * (image_BD * self._texts(self._ids(prompts))).sum(dim=-1)

    def _ids(self, prompts: Sequence[str]) -> Tensor:
        """The prompts' tokens, cut and padded to the model's context."""
        cut: dict[str, Any] = {"padding": "max_length", "max_length": self.context}
        return tokenize(self.tokenizer, prompts, truncation=True, **cut)["input_ids"]

    def _texts(self, ids_BL: Tensor) -> Tensor:
        from torch.nn.functional import normalize

        return normalize(self.model.texts(ids_BL.to(self.device)).float(), dim=-1)

    def _images(self, pixels_BCHW: Tensor) -> Tensor:
        from torch.nn.functional import normalize

        image_BD = self.model.images(pixels_BCHW.to(self.device, self.dtype))
        return normalize(image_BD.float(), dim=-1)


def load_perception(path: Path) -> PerceptionEncoder:
    """The model of a checkpoint, float32, on the CPU.

    Raises:
        InputError: the file is damaged, or its names or shapes are not those of a PE-Core.
    """
    import torch

    from raypref.models.perception_encoder import PerceptionEncoder, size_of

    where: dict[str, Any] = {"key": KEY, "path": path, "origin": f"a PE-Core, from {ORIGIN}"}
    state = read_state(path, key=KEY, origin=where["origin"])
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        size = size_of(state)
    except KeyError as error:
        require_names(state, [*state, error.args[0]], **where)
        raise
    except ValueError as error:
        raise InputError(f"{KEY}: '{path}' is not {where['origin']}: {error}") from None
    with torch.device("meta"):
        model = PerceptionEncoder(size)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    require_names(state, expected, **where)
    require_shapes(state, expected, **where)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval().requires_grad_(False)

"""PickScore: a CLIP ViT-H/14 tuned on human choices (Kirstain et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType, pick_device, torch_dtype
from raypref.models.hub import from_pretrained, model_folder
from raypref.rewards.base import DifferentiableReward, EmbeddingReward, moved
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
    quick: Literal["off", "tf32", "float16", "bfloat16"] = setting(
        "off",
        "precision in which curation scores all photographs at first; those that could become "
        "pairs are scored again in dtype: the same pairs, on a GPU sooner where few are wanted",
        later=True,
    )
    readers: Literal["worker", "pool"] = setting(
        "worker",
        "who reads photographs for the first scores: the workers' own cores, or tasks on all free "
        "cores of the cluster",
        affects_result=False,
    )
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

    def exactly(self) -> PickScoreConfig:
        """The same model in `dtype`, whatever curation's first scores are made in, and by whom."""
        default = {"quick": "off", "readers": "worker"}
        same = all(getattr(self, key) == value for key, value in default.items())
        return self if same else self.model_copy(update=default)

    def quickly(self) -> PickScoreConfig:
        """The same model in the precision of the first scores; of TF32, that of its weights."""
        dtype = {"off": self.dtype, "tf32": "float32"}.get(self.quick, self.quick)
        return self.exactly().model_copy(update={"dtype": dtype})


@contextmanager
def tf32() -> Iterator[None]:
    """Matrix products of float32 in TF32, where the device has it."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class PickScoreInput:
    """What the model reads of images and prompts, made without the model.

    Args:
        config: names the processor.
    """

    def __init__(self, config: PickScoreConfig) -> None:
        from transformers import CLIPImageProcessorPil, CLIPTokenizer

        processor = config.processor_folder()
        # By name: CLIPProcessor resizes with torchvision where there is one, and scores differ.
        self.images = from_pretrained(CLIPImageProcessorPil, processor)
        self.tokenizer = from_pretrained(CLIPTokenizer, processor)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's input, float32 [B, 3, H, W]."""
        pixels: Tensor = self.images(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def levels(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The same before it is normalised: a quarter of the bytes, uint8 [B, 3, H, W]."""
        resized = self.images(images=list(images), do_rescale=False, do_normalize=False)
        levels = np.stack(resized["pixel_values"])
        assert levels.dtype == np.uint8, "resizing changed the kind of numbers"
        return levels

    def normalised(self) -> Tensor:
        """What `pixels` makes of each channel's 256 levels, float32 [3, 256]."""
        ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
        plain = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        return cast("Tensor", self.images(images=[ramp], **plain)["pixel_values"][0, :, 0])

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts' tokens, cut at 77."""
        return tokens_of(self.tokenizer, prompts)


class PickScore(DifferentiableReward, EmbeddingReward):
    """exp(logit_scale) * cosine of image and text embedding, about 20 for real weights.

    Flow-GRPO divides this by 26; the paper and this project do not.
    """

    def __init__(self, config: PickScoreConfig) -> None:
        import torch
        from transformers import CLIPModel

        model = config.model_folder()
        self.device = pick_device(config.resources.num_gpus)
        self.input = PickScoreInput(config)
        self.model = from_pretrained(CLIPModel, model, dtype=torch.float32)
        self.scale = self.model.logit_scale.exp().item()  # bfloat16 would make 99 of its 100
        self.model.to(device=self.device, dtype=torch_dtype(config.dtype))
        self.model.eval().requires_grad_(False)
        self.normalised = self.input.normalised().to(self.device)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """The model's input, float32 [B, 3, H, W]."""
        return self.input.pixels(images)

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The prompts' tokens, cut at 77."""
        return self.input.tokens(prompts)

    def features(self, pixels: Tensor) -> np.ndarray:
        """Image embeddings of unit length, float32 [B, D]."""
        return self._image_features(pixels).cpu().numpy()

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Inputs:
        """Pixels and tokens."""
        return Inputs(self.pixels(images), self.tokens(prompts))

    def compute(self, batch: Inputs) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return self._score(self._image_features(batch.pixels_BCHW), batch.tokens)

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]."""
        from raypref.rewards.pixels import as_processor, precise, unit

        read_BCHW = as_processor(self.input.images, precise(pixels_BCHW, self.device))
        features_BD = self.model.get_image_features(
            pixel_values=read_BCHW.to(self.model.dtype)
        ).pooler_output
        return self._cosine(unit(features_BD), self.tokens(prompts))

    def score_levels(self, levels: np.ndarray, tokens: Mapping[str, Tensor]) -> np.ndarray:
        """The same, to the bit, from uint8 [B, 3, H, W] as `PickScoreInput.levels` makes it."""
        import torch

        levels_BCHW = torch.from_numpy(levels).to(self.device).int()
        channel_C11 = torch.arange(3, device=self.device)[:, None, None]
        return self._score(self._image_features(self.normalised[channel_C11, levels_BCHW]), tokens)

    def score_embedded(self, embeddings: np.ndarray, tokens: Mapping[str, Tensor]) -> np.ndarray:
        """The same for images that `embed` has seen: float32 [B] from float32 [B, D]."""
        import torch

        return self._score(torch.from_numpy(embeddings).to(self.device), tokens)

    def _score(self, image_BD: Tensor, tokens: Mapping[str, Tensor]) -> np.ndarray:
        return self._cosine(image_BD, tokens).cpu().numpy()

    def _cosine(self, image_BD: Tensor, tokens: Mapping[str, Tensor]) -> Tensor:
        from torch.nn.functional import cosine_similarity

        text_BD = self.model.get_text_features(**moved(tokens, self.device)).pooler_output
        cosine_B: Tensor = cosine_similarity(image_BD, text_BD.float())
        return self.scale * cosine_B

    def _image_features(self, pixels_BCHW: Tensor) -> Tensor:
        from torch.nn.functional import normalize

        features_BD = self.model.get_image_features(
            pixel_values=pixels_BCHW.to(self.device, self.model.dtype)
        ).pooler_output
        return normalize(features_BD.float(), dim=-1)

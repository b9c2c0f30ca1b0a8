"""SGP-PickScore, the realism of Figure 2a: nearer to a photograph or to a rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType
from raypref.engine.loaded import shared
from raypref.models.hub import model_folder
from raypref.rewards.base import DifferentiableReward
from raypref.rewards.clip import Clip, differentiably, scores
from raypref.rewards.config import RewardConfig
from raypref.rewards.pickscore import PickScoreConfig

if TYPE_CHECKING:
    from torch import Tensor

# Control words before the prompt.
PHOTO = "Realistic photo"
RENDER = "CG render"


class RealismConfig(RewardConfig):
    """Which PickScore. The same settings as `pickscore` share its model in a worker."""

    label: ClassVar[str] = "Realism"
    digits: ClassVar[int] = 3
    differentiable: ClassVar[bool] = True

    model: Location = setting("yuvalkirstain/PickScore_v1", "hub id or folder of PickScore")
    processor: Location = setting(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "hub id or folder of its processor"
    )
    separator: str = setting(
        ". ",
        "what joins the words 'Realistic photo' and 'CG render' to the prompt; the paper does not "
        "say it (Shen et al. 2025 write '. '), and scores depend on it",
        later=True,
    )
    dtype: DType = setting("float32", "precision of the model; half precision drowns the score")
    resources: Resources = Resources(batch=16)

    def check(self) -> None:
        """Fail before any work.

        Raises:
            InputError: model or processor is not there; says where to get it.
        """
        model_folder(self.model, key="rewards.realism.model", probe="config.json")
        probe = "preprocessor_config.json"
        model_folder(self.processor, key="rewards.realism.processor", probe=probe)

    def load(self) -> Realism:
        """Load the model onto its device."""
        return Realism(self)


class Asked(NamedTuple):
    """What PickScore reads, on the CPU."""

    pixels_BCHW: Tensor
    photo: Mapping[str, Tensor]  # tokens of the prompts of photographs
    render: Mapping[str, Tensor]  # of those of renderings


class Realism(DifferentiableReward):
    """PickScore("Realistic photo. " + prompt) - PickScore("CG render. " + prompt).

    Semantic guided preference (Shen et al. 2025, arXiv 2509.06942) with PickScore. On PickScore's
    scale of about 20, so a difference of a few hundredths: published values run from -0.25 to
    -0.01. Above 0 is closer to a photograph. The image is embedded once.
    """

    def __init__(self, config: RealismConfig) -> None:
        config.check()
        settings = PickScoreConfig(
            model=config.model,
            processor=config.processor,
            dtype=config.dtype,
            resources=config.resources,
        )
        self.prefixes = [words + config.separator for words in (PHOTO, RENDER)]
        self.pickscore = own = shared(settings, settings.load)
        seen = differentiably(own.input.images)
        self.clip = Clip(own.model, own.input.tokenizer, own.input.pixels, seen)

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Asked:
        """Pixels, and the tokens of both prompts (cut at 77, prefix included)."""
        return Asked(self.clip.pixels(images), *self._tokens(prompts))

    def compute(self, batch: Asked) -> np.ndarray:
        """Score B images with their prompts: float32 [B]."""
        image_BD = self.clip.images(batch.pixels_BCHW)
        return scores(self._towards(image_BD, batch.photo, batch.render))

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B]."""
        return self._towards(self.clip.seen(pixels_BCHW), *self._tokens(prompts))

    def _tokens(self, prompts: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Those of the prompts of photographs, and of renderings."""
        photo, render = (
            self.clip.tokens([prefix + prompt for prompt in prompts]) for prefix in self.prefixes
        )
        return photo, render

    def _towards(
        self, image_BD: Tensor, photo: Mapping[str, Tensor], render: Mapping[str, Tensor]
    ) -> Tensor:
        photo_BD, render_BD = self.clip.texts(photo), self.clip.texts(render)
        return self.pickscore.scale * (image_BD * (photo_BD - render_BD)).sum(dim=-1)

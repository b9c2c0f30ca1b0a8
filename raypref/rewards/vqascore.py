"""VQAScore: how likely a model says that the image shows the prompt (Lin et al. 2024).

The question goes to an open model of Qwen's kind (Qwen2-VL, Qwen2.5-VL, Qwen3-VL), as the authors'
library can do too, or to the paper's own, CLIP-FlanT5. Scores of different models cannot be
compared, so name the model with the number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import InputError, Location, Resources, setting
from raypref.core.device import DType
from raypref.models.hub import model_folder, read_json
from raypref.rewards.base import DifferentiableReward
from raypref.rewards.config import RewardConfig
from raypref.rewards.vlm import VisionLanguage, checked_folder, plain

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.rewards.clip_flant5 import ClipFlanT5

KEY = "rewards.vqascore.model"
TOKENIZER_KEY, VISION_KEY = "rewards.vqascore.tokenizer", "rewards.vqascore.vision"
TOKENIZER, VISION = "google/flan-t5-xxl", "openai/clip-vit-large-patch14-336"


class VQAScoreConfig(RewardConfig):
    """Which model is asked, and what."""

    label: ClassVar[str] = "VQAScore"
    digits: ClassVar[int] = 3
    differentiable: ClassVar[bool] = True
    large: ClassVar[bool] = True

    model: Location = setting(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "hub id or folder of an image-text-to-text model of Qwen's kind, or of the paper's own, "
        "zhiqiulin/clip-flant5-xxl",
    )
    question: str = setting(
        'Does this figure show "{prompt}"? Please answer yes or no.', "{prompt} is the prompt"
    )
    tokenizer: Location = setting(
        "",
        f"of CLIP-FlanT5: hub id or folder of its tokenizer; empty: {TOKENIZER}",
        later=True,
    )
    vision: Location = setting(
        "",
        "of CLIP-FlanT5: hub id or folder with configuration and image processor of its image "
        f"tower; empty: {VISION}",
        later=True,
    )
    dtype: DType = setting("bfloat16", "precision of the model")
    resources: Resources = Resources(batch=8)

    def check(self) -> None:
        """Look for the model.

        Raises:
            InputError: it is missing or of another kind, or the question does not name the prompt.
        """
        if not self.clip_flant5_folders():
            checked_folder(self.model, key=KEY)
        if "{prompt}" not in self.question:
            raise InputError("rewards.vqascore.question: it must hold {prompt}")

    def clip_flant5_folders(self) -> dict[str, Any]:
        """Where model, tokenizer and image tower of a CLIP-FlanT5 are; empty for another model.

        Raises:
            InputError: one of them cannot be had.
        """
        folder = model_folder(self.model, key=KEY, probe="config.json")
        if read_json(folder, "config.json", key=KEY).get("model_type") != "clip_t5":
            return {}
        tokenizer, vision = self.tokenizer or TOKENIZER, self.vision or VISION
        probes = ("tokenizer_config.json", "config.json", "preprocessor_config.json")
        model_folder(vision, key=VISION_KEY, probe=probes[2])
        return {
            "folder": folder,
            "tokenizer": model_folder(tokenizer, key=TOKENIZER_KEY, probe=probes[0]),
            "vision": model_folder(vision, key=VISION_KEY, probe=probes[1]),
        }

    def load(self) -> VQAScore:
        """Load the model onto its device."""
        return VQAScore(self)


class VQAScore(DifferentiableReward):
    """Probability, 0 to 1, that the answer begins with "Yes", among all that it could begin with.

    Of CLIP-FlanT5, that it is "Yes", as its authors compute it (`ClipFlanT5.yes`). Between batches
    it differs by up to 0.001% in float32 and 2% in bfloat16.
    """

    def __init__(self, config: VQAScoreConfig) -> None:
        self.question = config.question
        how: dict[str, Any] = {"dtype": config.dtype, "num_gpus": config.resources.num_gpus}
        self.vlm: VisionLanguage | ClipFlanT5
        self.likelihood: Callable[[dict[str, Tensor]], Tensor]
        if own := config.clip_flant5_folders():
            from raypref.rewards.clip_flant5 import ClipFlanT5

            keys = (KEY, TOKENIZER_KEY, VISION_KEY)
            self.vlm = flant5 = ClipFlanT5(**own, keys=keys, **how)
            self.tokenizer, self.likelihood = flant5.tokenizer, flant5.yes
        else:
            self.vlm = qwen = VisionLanguage(checked_folder(config.model, key=KEY), key=KEY, **how)
            self.tokenizer, self.likelihood = qwen.read.tokenizer, self._begins_with_yes
        self.yes, self.no = self._ways("yes"), self._ways("no")
        self.answer: int = self.tokenizer("Yes").input_ids[0]

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs."""
        return self.vlm.prepare(images, self._questions(prompts))

    def compute(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return self.likelihood(batch).numpy()

    def score_pixels(self, pixels_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores with a gradient to the pixels, [B], on the CPU."""
        return self.likelihood(self.vlm.prepare_pixels(pixels_BCHW, self._questions(prompts)))

    def _questions(self, prompts: Sequence[str]) -> list[str]:
        return [self.question.replace("{prompt}", plain(prompt)) for prompt in prompts]

    def _begins_with_yes(self, batch: dict[str, Tensor]) -> Tensor:
        return self.vlm.next_token(batch)[:, self.answer].exp()

    def says_yes(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[bool]:
        """Whether "yes" is likelier than "no" as the answer, however they are written: B truths."""
        asked = [f"{plain(question)} Please answer yes or no." for question in questions]
        log_BV = self.vlm.next_token(self.vlm.prepare(images, asked))
        yes_B, no_B = (log_BV[:, ids].logsumexp(-1) for ids in (self.yes, self.no))
        return (yes_B > no_B).tolist()

    def _ways(self, answer: str) -> list[int]:
        """First tokens of the ways to write an answer."""
        words = (answer, answer.capitalize(), answer.upper())
        return sorted({self.tokenizer(word).input_ids[0] for word in words})

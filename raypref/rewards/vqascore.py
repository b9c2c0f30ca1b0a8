"""VQAScore: how likely a model says that the image shows the prompt (Lin et al. 2024).

The paper's own model is CLIP-FlanT5, whose code is no part of transformers. Here the question goes
to an open model of Qwen's kind (Qwen2-VL, Qwen2.5-VL, Qwen3-VL), as the authors' library also does;
scores of different models cannot be compared, so name the model with the number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from PIL import Image

from raypref.core.config import InputError, Location, Resources, setting
from raypref.core.device import DType
from raypref.rewards.base import Reward
from raypref.rewards.config import RewardConfig
from raypref.rewards.vlm import VisionLanguage, checked_folder, plain

if TYPE_CHECKING:
    from torch import Tensor

KEY = "rewards.vqascore.model"


class VQAScoreConfig(RewardConfig):
    """Which model is asked, and what."""

    label: ClassVar[str] = "VQAScore"
    digits: ClassVar[int] = 3
    differentiable: ClassVar[bool] = True
    large: ClassVar[bool] = True

    model: Location = setting(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "hub id or folder of an image-text-to-text model of Qwen's kind",
    )
    question: str = setting(
        'Does this figure show "{prompt}"? Please answer yes or no.', "{prompt} is the prompt"
    )
    dtype: DType = setting("bfloat16", "precision of the model")
    resources: Resources = Resources(batch=8)

    def check(self) -> None:
        """Look for the model.

        Raises:
            InputError: it is missing or of another kind, or the question does not name the prompt.
        """
        checked_folder(self.model, key=KEY)
        if "{prompt}" not in self.question:
            raise InputError("rewards.vqascore.question: it must hold {prompt}")

    def load(self) -> VQAScore:
        """Load the model onto its device."""
        return VQAScore(self)


class VQAScore(Reward):
    """Probability, 0 to 1, that the answer begins with "Yes", among all that it could begin with.

    Between batches it differs by up to 0.001% in float32 and 2% in bfloat16.
    """

    def __init__(self, config: VQAScoreConfig) -> None:
        self.question = config.question
        self.vlm = VisionLanguage(
            checked_folder(config.model, key=KEY),
            key=KEY,
            dtype=config.dtype,
            num_gpus=config.resources.num_gpus,
        )
        self.yes, self.no = self._ways("yes"), self._ways("no")
        self.answer: int = self.vlm.read.tokenizer("Yes").input_ids[0]

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs."""
        questions = [self.question.replace("{prompt}", plain(prompt)) for prompt in prompts]
        return self.vlm.prepare(images, questions)

    def compute(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Score B images against their prompts: float32 [B]."""
        return self.vlm.next_token(batch)[:, self.answer].exp().numpy()

    def says_yes(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[bool]:
        """Whether "yes" is likelier than "no" as the answer, however they are written: B truths."""
        asked = [f"{plain(question)} Please answer yes or no." for question in questions]
        log_BV = self.vlm.next_token(self.vlm.prepare(images, asked))
        yes_B, no_B = (log_BV[:, ids].logsumexp(-1) for ids in (self.yes, self.no))
        return (yes_B > no_B).tolist()

    def _ways(self, answer: str) -> list[int]:
        """First tokens of the ways to write an answer."""
        words = (answer, answer.capitalize(), answer.upper())
        return sorted({self.vlm.read.tokenizer(word).input_ids[0] for word in words})

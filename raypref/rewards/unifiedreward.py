"""UnifiedReward: a model that writes down a score from 1 to 5 (Wang et al. 2025)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image

from raypref.core.config import Location, Resources, setting
from raypref.core.device import DType
from raypref.rewards.base import Reward
from raypref.rewards.config import RewardConfig
from raypref.rewards.vlm import VisionLanguage, checked_folder, plain

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

KEY = "rewards.unifiedreward.model"
# Word for word what the model was trained to be asked.
QUESTION = (
    "You are given a text caption and a generated image based on that caption. Your task is to "
    "evaluate this image based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. "
    "Consider the accuracy of depicted objects, their relationships, and attributes as described "
    "in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\n"
    "Extract key elements from the provided text caption, evaluate their presence in the generated "
    "image using the format: 'element (type): value' (where value=0 means not generated, and "
    "value=1 means generated), and assign a score from 1 to 5 after 'Final Score:'.\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
# That of Flow-GRPO and Follow-Your-Preference, for the score alone: a tenth of the tokens.
SHORT_QUESTION = QUESTION.replace(
    "Extract key elements from the provided text caption, evaluate their presence in the generated "
    "image using the format: 'element (type): value' (where value=0 means not generated, and "
    "value=1 means generated), and assign",
    "Based on the above criteria, assign",
)
# The number may stand in bold or in brackets.
_NUMBER = r"Final Score:[\s*\[]*(\d+(?:\.\d+)?)"
# As RealAlign, Flow-GRPO and Follow-Your-Preference read it: "45" is a 4 there.
_PLAIN_NUMBER = r"Final Score:\s*([1-5](?:\.\d+)?)"


class UnifiedRewardConfig(RewardConfig):
    """Which UnifiedReward weights and how."""

    label: ClassVar[str] = "UniRwd"
    spelt_out: ClassVar[str] = "UnifiedReward"
    large: ClassVar[bool] = True

    model: Location = setting(
        "CodeGoat24/UnifiedReward-qwen-7b", "hub id or folder of the Qwen2.5-VL model"
    )
    max_new_tokens: int = setting(512, "longest answer; the score stands at its end", ge=1)
    question: Literal["elements", "score"] = setting(
        "elements",
        "elements: the caption's elements one by one, then the score, as the model was trained; "
        "score: the score alone, as Flow-GRPO and Follow-Your-Preference ask",
        later=True,
    )
    reading: Literal["last", "first"] = setting(
        "last",
        "which number after 'Final Score:' counts: last, the last one from 1 to 5, in bold or "
        "brackets too; first, the first plain one, as the released code",
        later=True,
    )
    unreadable: Literal["drop", "zero"] = setting(
        "drop",
        "an answer without a score: drop, no score, left out of the means; zero, the score 0, as "
        "the released code",
        later=True,
    )
    jpeg: int = setting(
        0,
        "JPEG quality that images pass through first (Follow-Your-Preference: 95); 0: they do not",
        later=True,
        ge=0,
        le=100,
    )
    dtype: DType = setting("bfloat16", "precision of the model")
    resources: Resources = Resources(batch=8)

    def check(self) -> None:
        """Look for the model.

        Raises:
            InputError: it is missing or of another kind.
        """
        checked_folder(self.model, key=KEY, kinds=["qwen2_5_vl"])

    def load(self) -> UnifiedReward:
        """Load the model onto its device."""
        return UnifiedReward(self)


class UnifiedReward(Reward):
    """The number after "Final Score:", 1 to 5; where the answer holds none NaN, or 0 if asked.

    An answer is the likeliest one, token by token. In float32 it does not depend on its batch; in
    bfloat16 two tokens that are nearly as likely may change places, and the score with them.
    """

    def __init__(self, config: UnifiedRewardConfig) -> None:
        self.max_new_tokens = config.max_new_tokens
        self.short, self.jpeg = config.question == "score", config.jpeg
        self.first = config.reading == "first"
        self.without = 0.0 if config.unreadable == "zero" else math.nan
        self.asked = self.unreadable = 0  # answers since the model was loaded
        self.vlm = VisionLanguage(
            checked_folder(config.model, key=KEY, kinds=["qwen2_5_vl"]),
            key=KEY,
            dtype=config.dtype,
            num_gpus=config.resources.num_gpus,
        )

    def prepare(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The model's inputs."""
        question = SHORT_QUESTION if self.short else QUESTION
        questions = [question.replace("{prompt}", plain(prompt)) for prompt in prompts]
        if self.jpeg:
            images = [through_jpeg(image, self.jpeg) for image in images]
        return self.vlm.prepare(images, questions)

    def compute(self, batch: dict[str, Tensor]) -> np.ndarray:
        """Score B images against their prompts: float32 [B], NaN (or 0) where there is no score."""
        answers = self.vlm.answers(batch, max_new_tokens=self.max_new_tokens)
        scores = [parse(answer, any_case=self.short, first=self.first) for answer in answers]
        unreadable = [a for a, score in zip(answers, scores, strict=True) if math.isnan(score)]
        self.asked += len(answers)
        self.unreadable += len(unreadable)
        if unreadable:
            log.warning(
                "UnifiedReward: %d of %d answers so far hold no score from 1 to 5, such as %r",
                self.unreadable,
                self.asked,
                unreadable[0][-80:],
            )
        return np.nan_to_num(np.array(scores, dtype=np.float32), nan=self.without)


def parse(answer: str, *, any_case: bool = False, first: bool = False) -> float:
    """The number after the last "Final Score:", or NaN if there is none from 1 to 5.

    Args:
        answer: what the model wrote.
        any_case: take "final score:" too.
        first: the first one that is followed by a plain number from 1 to 5 instead.
    """
    case = re.IGNORECASE if any_case else 0
    if first:
        found = re.search(_PLAIN_NUMBER, answer, case)
        return float(found[1]) if found else math.nan
    numbers = re.findall(_NUMBER, answer, case)
    score = float(numbers[-1]) if numbers else math.nan
    return score if 1 <= score <= 5 else math.nan


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image as it comes out of a JPEG file."""
    file = BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")

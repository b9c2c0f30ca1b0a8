"""Diffusion-KTO: each image enters with a utility of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import SAMPLES_COMPARED, Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import InputError, setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.config import Experience
    from raypref.align.pair_data import PairData
    from raypref.align.residuals import Residuals


class KTO(PairwiseConfig):
    """lambda * (1 - U(v)), v = reward - z where an image is desirable, z - reward where it is not.

    Li et al. 2024 (arXiv 2404.04465, section 4; survey arXiv 2409.07253, eq. 13). The reward is
    -beta/2 * gap, so that chosen minus rejected is the logit. U is sigmoid(v) (Kahneman and
    Tversky's), log sigmoid(v) (loss averse) or -log sigmoid(-v) (risk seeking). A pair is the sum
    of a desirable and an undesirable image with the same noise; or each image is a sample of its
    own, and no pairs are needed.

    The paper's reference point z is beta times the divergence from the reference, estimated by the
    mean reward of the batch at hand, at least 0. A sample's loss would then depend on what is
    beside it, and z on how the batch is split, unless the whole batch went through both networks
    before the first gradient. So `average` takes the mean reward of whole batches of earlier steps,
    over 256 samples (rounded up to whole steps), but for the last step. `zero` is its value where
    training starts.
    """

    labelled: ClassVar[bool] = True

    objective: Literal["kto"] = setting("kto", "Diffusion-KTO on pairs or labelled images")
    sample: Literal["pair", "image"] = setting(
        "pair",
        "pair: both images of a pair, with one noise; image: one labelled image, which is all that "
        "single images have",
        later=True,
    )
    utility: Literal["sigmoid", "loss_averse", "risk_seeking"] = setting(
        "sigmoid", "utility of a gain over the reference point", later=True
    )
    reference_point: Literal["zero", "average"] = setting(
        "zero", "reward from which gains count: 0, or the mean of earlier steps", later=True
    )
    desirable_weight: float = setting(1.0, "lambda of desirable images", later=True, ge=0)
    undesirable_weight: float = setting(1.0, "lambda of undesirable images", later=True, ge=0)
    desirable_above: float = setting(
        0.5, "scores above it are desirable, where single images have scores", later=True
    )

    @property
    def sides(self) -> tuple[str, ...]:
        """A pair's, or one image."""
        return ("chosen", "rejected") if self.sample == "pair" else ("image",)

    def check_scores(self, low: float, high: float, *, key: str) -> None:
        """Raise InputError where all images are desirable, or none is."""
        if self.sample == "pair" or low <= self.desirable_above < high:
            return
        which = "no image is" if high <= self.desirable_above else "all images are"
        fix = f"set it to {(low + high) / 2:g}, for example" if low < high else "kto needs both"
        raise InputError(
            f"{key}.desirable_above={self.desirable_above:g}: {which} desirable, since scores go "
            f"from {low:g} to {high:g}; {fix}"
        )

    def prepared(self, data: PairData, *, key: str) -> PairData:
        """Every image a row of its own, where that is a sample.

        Raises:
            InputError: all images are desirable, or none is.
        """
        if self.sample == "pair":
            return data
        data = data.images()
        self.check_scores(*data.scores(), key=key)
        return data

    def experience(self) -> Experience:
        """Pairs, or the image of each row."""
        from raypref.align.experience import chosen_images, stored_pairs

        return stored_pairs if self.sample == "pair" else chosen_images

    def carried(self, history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
        """The reference point, in units of the reward."""
        if self.reference_point == "zero":
            return {}
        recent = history[-math.ceil(SAMPLES_COMPARED / self.batch) :]
        gaps = [row[f"{side}_gap"] for row in recent for side in self.sides]
        mean = sum(gaps) / len(gaps) if gaps else 0.0
        return {"reference_point": max(0.0, -0.5 * self.beta * mean)}

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch

        told: Metrics = {}
        point = torch.zeros_like(sides[0].gap)
        if self.reference_point == "average":
            point = told["reference_point"] = facts["reference_point"]
        if self.sample == "pair":
            _, metrics = self.logit(sides)
            chosen, rejected = (-0.5 * self.beta * side.gap for side in sides)
            gained = self.desirable_weight * self._missed(chosen - point)
            avoided = self.undesirable_weight * self._missed(point - rejected)
            return gained + avoided, metrics | told
        (image,) = sides
        reward_B = -0.5 * self.beta * image.gap
        good_B = (facts["score"] > self.desirable_above).to(reward_B.dtype)
        value_B = (reward_B - point) * (2 * good_B - 1)
        lambda_B = good_B * self.desirable_weight + (1 - good_B) * self.undesirable_weight
        return lambda_B * self._missed(value_B), told | {
            "desirable": good_B,
            "ref_desirable": good_B * image.reference_error.detach(),
            "desirable_gap": good_B * image.gap.detach(),
            "implicit_accuracy": (value_B > 0).to(value_B.dtype).detach(),
        }

    def _missed(self, value_B: Tensor) -> Tensor:
        """1 - U(value)."""
        import torch
        import torch.nn.functional as F

        if self.utility == "sigmoid":
            return torch.sigmoid(-value_B)  # 1 - sigmoid(x) = sigmoid(-x), without cancellation
        if self.utility == "loss_averse":
            return 1 + F.softplus(-value_B)
        return 1 - F.softplus(value_B)

    def health(self, history: Sequence[Mapping[str, float]], *, key: str) -> str:
        """Why a training must stop: the error on desirable images far above the reference's."""
        side = "chosen" if self.sample == "pair" else "desirable"
        return self.error_grown(history, side, key=key)

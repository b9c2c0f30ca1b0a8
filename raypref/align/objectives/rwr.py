"""Reward-weighted regression: the denoising error, weighted by each image's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.labelled import LabelledConfig
from raypref.core.config import InputError, setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.pair_data import PairData
    from raypref.align.residuals import Residuals


class RWR(LabelledConfig):
    """weight(score) * error + pretraining * |learner - reference|^2.

    The weight is exp(score / temperature) / Z, or 1 where the score reaches the cutoff and 0
    elsewhere: both as Black et al. 2024 (arXiv 2305.13301) take them from Peters and Schaal 2007.
    Or it is the score itself, as in Lee et al. 2023 (arXiv 2302.12192). Z makes
    the weights 1 on average over all images, not over a batch: a sample's loss does not depend on
    what is beside it.

    Lee et al. add beta times the error on images of the pretraining. Those are not at hand here, so
    the reference's predictions stand for them: where it predicts the mean of what it was trained
    on, the error is the squared distance to its prediction and a constant. This is ours.
    """

    facts: ClassVar[tuple[str, ...]] = ("score", "weight")

    objective: Literal["rwr"] = setting("rwr", "reward-weighted regression on labelled images")
    weighting: Literal["exponential", "cutoff", "score"] = setting(
        "exponential",
        "an image's weight: exp(score/temperature)/Z, 1 from the cutoff on, its score",
    )
    temperature: float = setting(
        1.0, "in units of the score; smaller takes the best images alone", gt=0
    )
    cutoff: float = setting(0.5, "smallest score with a weight, where the weighting is cutoff")
    pretraining: float = setting(
        0.0, "weight of the squared distance to the reference's prediction", ge=0
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The weight is made of the scores."""
        return tuple(name for name in super().columns if name != "weight")

    def check_scores(self, low: float, high: float, *, key: str) -> None:
        """Raise InputError where no image would have a weight, or one a negative weight."""
        if self.weighting == "score" and low < 0:
            raise InputError(
                f"{key}.weighting=score: scores go down to {low:g}, and a weight cannot be "
                "negative; set it to exponential or cutoff"
            )
        none = {"exponential": False, "cutoff": high < self.cutoff, "score": high == 0}
        if none[self.weighting]:
            raise InputError(
                f"{key}.weighting={self.weighting}: no image has a weight; scores go from {low:g} "
                f"to {high:g}, {key}.cutoff is {self.cutoff:g}"
            )

    def prepared(self, data: PairData, *, key: str) -> PairData:
        """Every image a row of its own, with its `weight`.

        Raises:
            InputError: no image has a weight, or one has a negative weight.
        """
        data = super().prepared(data, key=key)
        self.check_scores(*data.scores(), key=key)
        score_N = data.facts["score"]
        if self.weighting == "exponential":
            weight_N = (score_N / self.temperature).softmax(0) * len(score_N)
        elif self.weighting == "cutoff":
            weight_N = (score_N >= self.cutoff).to(score_N.dtype)
        else:
            weight_N = score_N
        return replace(data, facts={**data.facts, "weight": weight_N})

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,), weight_B = sides, facts["weight"]
        loss_B = weight_B * image.error
        if self.pretraining:
            loss_B = loss_B + self.pretraining * image.distance
        return loss_B, {
            "weight": weight_B,
            "ref_desirable": weight_B * image.reference_error.detach(),
            "desirable_gap": weight_B * image.gap.detach(),
        }

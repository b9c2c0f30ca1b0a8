"""RAFT: supervised fine-tuning on the best images of every prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics, TrainingConfig
from raypref.align.objectives.labelled import LabelledConfig
from raypref.core.config import InputError, setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.pair_data import PairData
    from raypref.align.residuals import Residuals


class RAFT(LabelledConfig):
    """The denoising error on the `best` images per prompt; the others are not trained on.

    Reward-ranked fine-tuning (Dong et al. 2023, arXiv 2304.06767) draws the images
    from the model in training, over and over. Here they are given: it is one round of that.
    """

    sides: ClassVar[tuple[str, ...]] = ("chosen",)
    facts: ClassVar[tuple[str, ...]] = ()
    against: ClassVar[str] = ""

    objective: Literal["raft"] = setting("raft", "fine-tuning on the best images per prompt")
    best: int = setting(1, "images per prompt that are trained on, by score", ge=1)

    @property
    def columns(self) -> tuple[str, ...]:
        """Images are ranked among those of their prompt."""
        return (*super().columns, "prompt")

    def prepared(self, data: PairData, *, key: str) -> PairData:
        """The best images of every prompt, each a row; of equal scores those of the first ids.

        Raises:
            InputError: no prompt has more images than are kept.
        """
        import torch

        data = super().prepared(data, key=key)
        prompt_N, score_N = data.facts["prompt"], data.facts["score"]
        ranked_N = torch.argsort(score_N, descending=True, stable=True)
        ranked_N = ranked_N[torch.argsort(prompt_N[ranked_N], stable=True)]
        _, counts = torch.unique_consecutive(prompt_N[ranked_N], return_counts=True)
        if int(counts.max()) <= self.best:
            raise InputError(
                f"{key}.best={self.best}: no prompt has more than {int(counts.max())} images, so "
                f"none would be left out; lower it, or set {key}.objective=sft"
            )
        rank_N = torch.cat([torch.arange(int(count)) for count in counts])
        return data.only(ranked_N[rank_N < self.best].sort().values)

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (chosen,) = sides
        return chosen.error, {}

    def health(self, history: Sequence[Mapping[str, float]], *, key: str) -> str:
        """Why a training must stop: the error on the images that were kept."""
        return TrainingConfig.health(self, history, key=key)

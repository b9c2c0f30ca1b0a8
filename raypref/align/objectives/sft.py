"""Supervised fine-tuning on the chosen images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics, TrainingConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.config import Experience
    from raypref.align.residuals import Residuals


class SFT(TrainingConfig):
    """The chosen image's denoising error alone (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""

    sides: ClassVar[tuple[str, ...]] = ("chosen",)

    objective: Literal["sft"] = setting("sft", "supervised fine-tuning on the chosen images")

    def experience(self) -> Experience:
        """The chosen images of stored pairs."""
        from raypref.align.experience import chosen_images

        return chosen_images

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (chosen,) = sides
        return chosen.error, {}

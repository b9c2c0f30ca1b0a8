"""What the objectives on labelled images share: every image is a sample, with a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from raypref.align.config import TrainingConfig

if TYPE_CHECKING:
    from raypref.align.config import Experience
    from raypref.align.pair_data import PairData


class LabelledConfig(TrainingConfig):
    """A training on single labelled images, or on the images of pairs.

    The score of a single image is the ledger's: 1 for good and 0 for bad, or any number. Of a pair
    the chosen image has score 1, the rejected one 0. An epoch visits each image once.
    """

    sides: ClassVar[tuple[str, ...]] = ("image",)
    facts: ClassVar[tuple[str, ...]] = ("score",)
    labelled: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        """As ever, less the score, which pairs do not have; single images' is read unasked."""
        return tuple(name for name in super().columns if name != "score")

    def prepared(self, data: PairData, *, key: str) -> PairData:
        """Every image a row of its own."""
        return data.images()

    def experience(self) -> Experience:
        """The image of each row."""
        from raypref.align.experience import chosen_images

        return chosen_images

    def health(self, history: Sequence[Mapping[str, float]], *, key: str) -> str:
        """Why a training must stop: the error on the images it shall learn far above before."""
        return self.error_grown(history, "desirable", key=key)

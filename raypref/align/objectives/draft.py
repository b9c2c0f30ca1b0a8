"""DRaFT: the gradient of the reward through the last steps of drawing an image."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from raypref.align.backprop_config import BackpropConfig
from raypref.core.config import setting


class DRaFT(BackpropConfig):
    """-reward of finished images, with a gradient through the last K solver steps.

    Direct reward fine-tuning (Clark et al. 2024, arXiv 2309.17400): K = `steps_with_gradient`, all
    steps being its plain form. DRaFT-LV is K = 1 and `noises`: the finished image is noised to the
    last step again and again, and the loss is the mean over it and the images that come of that.
    With `stop_gradient` and `spread` it is DRTune (Wu et al. 2024, arXiv 2405.00760), but for that
    paper's random early end of sampling.
    """

    objective: Literal["draft"] = setting("draft", "reward gradient through the last steps")
    guidance: float = setting(7.5, "classifier-free guidance of the images; 1: none", ge=1)
    noises: int = setting(
        0,
        "with one step, further images per image, by noising it to the last step again (DRaFT-LV "
        "has 2)",
        ge=0,
    )

    @property
    def further_noises(self) -> int:
        """Of DRaFT-LV."""
        return self.noises

    @model_validator(mode="after")
    def _has_one_step(self) -> Self:
        """Refuse more noises for more steps."""
        if self.noises and (self.steps_with_gradient > 1 or self.spread):
            raise ValueError(
                f"noises={self.noises}: images are noised to the last step alone; set "
                "steps_with_gradient=1 and spread=false, or noises=0"
            )
        return self

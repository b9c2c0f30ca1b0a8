"""What the objectives on finished images of the policy share: levels of noise, and the distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from raypref.align.online_config import OnlineConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.blocks import RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser


class DecoupledConfig(OnlineConfig):
    """An online training that reads finished images, noised anew as in pretraining.

    How they were drawn does not matter: any solver, any number of steps, with guidance or not.
    """

    # Numbers of a sample that the loss reads. Made of the block, not columns of the pairs; `level`
    # and `clean_scale` are those of `noising.py`.
    facts: ClassVar[tuple[str, ...]] = ("advantage",)

    lr: float = setting(
        3e-4, "learning rate of AdamW (as released for LoRAs on SD-3.5-M: NFT, AWM, DGPO)", gt=0
    )

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """Images noised to drawn timesteps, with what the loss reads of a noise level."""
        return self.leveled(denoiser, super().samples(denoiser, block, images, generators))

    def leveled(self, denoiser: Denoiser, samples: Samples) -> Samples:
        """The samples with the facts that their timesteps decide."""
        from raypref.align import noising

        known = {"level": noising.level, "clean_scale": noising.clean_scale}
        like = samples.sides[0].x_BCHW
        found = {
            name: of(denoiser, samples.timesteps_B).to(like)
            for name, of in known.items()
            if name in self.facts
        }
        return samples._replace(facts={**samples.facts, **found})

    def held(self, loss_B: Tensor, side: Residuals) -> Tensor:
        """The loss and `kl` times the squared distance to the reference's prediction."""
        return loss_B + self.kl * side.distance if self.kl else loss_B

    def health(self, history: Sequence[Mapping[str, float]], *, key: str) -> str:
        """Why a training must stop: as all on rewards, or images that it denoises far worse.

        Of its own images the learner's error is hardly above the reference's: a network whose
        error is several times as large is out of order. Without a reference it is not known.
        """
        stop = super().health(history, key=key)
        if stop or self.against != "ref":
            return stop
        return self.error_grown(history, self.sides[0], key=key)


def clipped(advantage_B: Tensor, log_ratio_B: Tensor, clip_range: float) -> Tensor:
    """Where the clipped objective of PPO has no gradient, [B], bool.

    That is where the ratio of likelihoods has moved by more than `clip_range` in the direction of
    the advantage (arXiv 1707.06347, eq. 7).
    """
    ratio_B = log_ratio_B.detach().exp()
    above, below = ratio_B > 1 + clip_range, ratio_B < 1 - clip_range
    return (above & (advantage_B > 0)) | (below & (advantage_B < 0))


def absolute(residual_BCHW: Tensor, scale_B: Tensor | float) -> Tensor:
    """What an error is divided by where it is normalised: its mean absolute size, at least 1e-5.

    Without a gradient, float32 or better, [B].
    """
    return (scale_B * residual_BCHW.detach().abs().flatten(1).mean(1)).clamp(min=1e-5)

"""DGPO: Diffusion-DPO of the good images of a group against the bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.decoupled import DecoupledConfig, clipped
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.blocks import RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser


class DGPO(DecoupledConfig):
    """(group / beta) * -log sigmoid(-(beta / group) sum_i A_i gap_i) + kl |learner - reference|^2.

    Luo et al. 2025 (arXiv 2510.08425): images above the group's mean are one side of a preference,
    those below the other, each weighted by its advantage. The derivative by the gap of image i is
    A_i sigmoid((beta / group) sum A gap): so a sample's loss is that times its gap, with the number
    of a first pass over the group (the metric `loss` is of this form). With two images it is DPO.

    As released: the images of a group share timestep and noise; only noisy timesteps are trained
    on, since the last steps of a short rollout leave artefacts; images are drawn with guidance and
    trained on without; and, as in PPO, an image gets no gradient once the likelihood ratio of
    learner and policy, exp(policy's error - learner's), has moved by `clip_range` (0: off, and no
    forward of the policy). Defaults are those of its scripts for SD-3.5-M.
    """

    facts: ClassVar[tuple[str, ...]] = ("advantage", "coefficient")
    against: ClassVar[str] = "ref"
    whole_groups: ClassVar[bool] = True

    objective: Literal["dgpo"] = setting("dgpo", "DGPO: good images of a group against bad ones")
    beta: float = setting(100.0, "strength of the pull to the reference", gt=0)
    clip_range: float = setting(
        0.01, "how far the ratio may move from 1 with a gradient; 0: any", ge=0
    )
    shared_noise: bool = setting(True, "one timestep and noise for all images of a group")
    least_level: float = setting(
        0.56,
        "least share of noise that is trained on, 0 to 1; released: 0.3, shifted by SD-3.5's 3",
        ge=0,
        le=0.9,
    )
    guidance: float = setting(4.5, "classifier-free guidance of the rollouts; 1: none", ge=1)
    kl: float = setting(
        0.02, "weight of the squared distance between predictions of learner and reference", ge=0
    )
    policy_keep: float = setting(
        0.3,
        "what the policy keeps of itself when it is refreshed; 0: a copy of the learner",
        ge=0,
        lt=1,
    )

    @property
    def reads_policy(self) -> bool:  # type: ignore[override]
        """Where the ratio is clipped."""
        return self.clip_range > 0

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """Images noised to noisy timesteps, a group to one of them with one noise."""
        from raypref.align import noising, online

        shape = tuple(block.latents_NCHW.shape[1:])
        own = generators[:: self.group] if self.shared_noise else generators
        timesteps, noise = noising.timesteps_and_noise(
            denoiser, shape, own, times=self.timesteps, least_level=self.least_level
        )
        if self.shared_noise:
            timesteps = timesteps.repeat_interleave(self.group)
            noise = noise.repeat_interleave(self.group, 0)
        return online.at(denoiser, block, [[*images] * self.timesteps], timesteps, noise)

    def coefficients(self, numbers_NG: Tensor, facts: Mapping[str, Tensor]) -> Tensor:
        """The derivative of a group's loss by the gap of each image, [N, G]."""
        advantage_NG = facts["advantage"]
        lost_N1 = self.beta * (advantage_NG * numbers_NG).mean(1, keepdim=True)
        return advantage_NG * lost_N1.sigmoid()

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch

        (image,), coefficient_B = sides, facts["coefficient"]
        loss_B = coefficient_B * image.gap
        metrics = {"coefficient_abs": coefficient_B.abs()}
        if self.reads_policy:
            held_B = clipped(facts["advantage"], -image.policy_gap, self.clip_range)
            loss_B = torch.where(held_B, loss_B.detach(), loss_B)
            metrics["clipped"] = held_B.to(loss_B.dtype)
        return self.held(loss_B, image), metrics

"""What the objectives on steps of the policy's paths share: noisy rollouts and likelihoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from raypref.align.online_config import OnlineConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from raypref.align.blocks import RolledOut, RolloutBlock
    from raypref.align.residuals import Residuals, Samples
    from raypref.models.families.base import Denoiser
    from raypref.models.families.conditioning import Conditioning


class CoupledConfig(OnlineConfig):
    """An online training on the likelihood of the steps that made the images.

    Images are drawn by a solver with noise in its steps: DDIM with eta on Stable Diffusion, an SDE
    on flows. The likelihood of a step is Gaussian, and so its log is -kappa times the denoising
    error towards a target that the step decides (`models/stochastic.py`). Log-likelihoods are means
    over the latents' dimensions, as all the releases take them, or sums, as they are defined
    (`per_dimension`): the clip ranges of the releases belong to means.

    The last of `rollout_steps` has no noise, and is not trained on.
    """

    # Numbers of a sample that the loss reads. Made of the block, not columns of the pairs.
    facts: ClassVar[tuple[str, ...]] = ("advantage", "kappa")
    reads_policy: ClassVar[bool] = True

    timesteps: int = setting(
        4, "steps of each image that an optimizer step trains on, drawn for each image", ge=1
    )
    eta: float = setting(
        1.0,
        "noise of the rollouts: eta of DDIM; on a flow, the factor of sqrt(sigma / (1 - sigma))",
        gt=0,
        le=1,
    )
    shared_start: bool = setting(
        False, "start all images of a prompt from one noise, so that they differ by their paths"
    )
    per_dimension: bool = setting(
        True, "log-likelihoods as means over the latents' dimensions, as released; false: sums"
    )
    kl: float = setting(0.0, "weight of the distance to the reference (kl_of); 0: none", ge=0)
    kl_of: Literal["step", "prediction"] = setting(
        "step",
        "distance to the reference: the KL divergence of the step, or the squared distance of the "
        "predictions",
    )

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        """Refuse more steps to train on than have noise."""
        if self.timesteps > self.noisy_steps:
            raise ValueError(
                f"timesteps={self.timesteps}: {self.noisy_steps} of rollout_steps="
                f"{self.rollout_steps} have noise and can be trained on (never the last)"
            )
        return self

    @property
    def noisy_steps(self) -> int:
        """Steps of a rollout that have noise."""
        return self.rollout_steps - 1

    @property
    def constant_noise(self) -> bool:
        """Whether the noise of a flow's steps is the same at all levels; DDIM has but one form."""
        return False

    def window(self, step: int) -> range | None:
        """The steps of a rollout that have noise; None: all but the last.

        Args:
            step: the optimizer step that the images are first used for.
        """
        return None

    def roll_out(
        self,
        denoiser: Denoiser,
        start_NCHW: Tensor,
        prompts: Conditioning,
        unconditional: Conditioning,
        generators: Sequence[torch.Generator],
        *,
        step: int,
    ) -> RolledOut:
        """Images by the family's stochastic solver, with their paths."""
        from raypref.align.online import guided
        from raypref.align.trajectories import stochastic_images

        shape = tuple(start_NCHW.shape[1:])
        if self.shared_start:
            groups = start_NCHW.view(-1, self.group, *shape)
            start_NCHW = groups[:, :1].expand_as(groups).reshape(start_NCHW.shape)
        grid_n = denoiser.sampling_timesteps(self.rollout_steps, shape)
        grid_nN = grid_n[:, None].expand(-1, len(start_NCHW))
        solver = denoiser.stochastic_solver(
            grid_nN, eta=self.eta, constant=self.constant_noise, window=self.window(step)
        )
        predict = guided(denoiser, unconditional, self.guidance)
        return stochastic_images(predict, solver, start_NCHW, prompts, generators, grid_nN=grid_nN)

    def samples(
        self,
        denoiser: Denoiser,
        block: RolloutBlock,
        images: Sequence[int],
        generators: Sequence[torch.Generator],
    ) -> Samples:
        """Steps of each image's path, drawn without replacement from its generator."""
        from raypref.align.trajectories import drawn_steps, path_samples

        steps_KN = drawn_steps(generators, self.timesteps, of=self.noisy_steps)
        return path_samples(block, [images], steps_KN, guidance=self.guidance)

    def log_ratio(self, gap_B: Tensor, facts: Mapping[str, Tensor], side: Residuals) -> Tensor:
        """Log-likelihood of the step under the learner, less that under another, [B].

        Args:
            gap_B: the learner's error less the other's.
            facts: of the samples.
            side: whose gap it is; it says how many dimensions there are.
        """
        return -self.divergence(gap_B, facts, side)

    def divergence(
        self, distance_B: Tensor, facts: Mapping[str, Tensor], side: Residuals
    ) -> Tensor:
        """The KL divergence of steps with predictions at this squared distance, [B]."""
        size = 1 if self.per_dimension else side.learner[0].numel()
        return facts["kappa"] * size * distance_B

    def held(self, loss_B: Tensor, facts: Mapping[str, Tensor], side: Residuals) -> Tensor:
        """The loss and `kl` times the distance to the reference (`kl_of`)."""
        if not self.kl:
            return loss_B
        if self.kl_of == "prediction":
            return loss_B + self.kl * side.distance
        return loss_B + self.kl * self.divergence(side.distance, facts, side)


def ppo_loss(
    advantage_B: Tensor, ratio_B: Tensor, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective (arXiv 1707.06347, eq. 7), negated, and metrics, each [B].

    Args:
        advantage_B: advantages.
        ratio_B: likelihood under the learner, divided by that under the policy.
        clip_range: how far the ratio may move from 1 in the advantage's direction, with a gradient.
    """
    import torch

    near_B = ratio_B.clamp(1 - clip_range, 1 + clip_range)
    free_B, held_B = -advantage_B * ratio_B, -advantage_B * near_B
    metrics = {"ratio": ratio_B.detach(), "clipped": (held_B > free_B).to(ratio_B.dtype)}
    return torch.maximum(free_B, held_B), metrics

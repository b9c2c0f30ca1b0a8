"""Flow-GRPO and DanceGRPO: GRPO on the steps of a flow's SDE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.coupled import CoupledConfig, ppo_loss
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class FlowGRPO(CoupledConfig):
    """-A ratio, clipped as in PPO, + kl KL(step of learner, step of reference).

    Liu et al. 2025 (arXiv 2505.05470): a flow is sampled by the SDE of the same marginals, in few
    steps, and rewards are standardised within the group. Defaults are those of the released code
    for PickScore on SD-3.5-M, but for `group` (24 there) and `timesteps` (9 of 10 there). Its KL
    leaves out the size of the step, so that its weight counts that much less; here the divergence
    is the paper's.

    DanceGRPO (Xue et al. 2025, arXiv 2505.07818) has the same noise at all levels, one start noise
    per prompt and no KL: `variant=dance_grpo`, `eta=0.3`, `shared_start=true`, `kl=0`; on Stable
    Diffusion both are DDIM with eta.

    With `ratio=guard` ratios are those of GRPO-Guard (Wang et al. 2025, arXiv 2510.22319): the
    policy's drift is added to the log-ratio, whose mean it had made negative, and the sum is
    multiplied by the step's std, so that one clip range suits all steps; the loss is divided by |B|
    of the step x' = A x + B prediction + std noise, so that all steps weigh alike. The release
    divides by the change of level: on Flow-GRPO's SDE that is |B| / (1 + eta^2 / 2) below level 1.
    """

    facts: ClassVar[tuple[str, ...]] = ("advantage", "kappa", "std")

    objective: Literal["flow_grpo"] = setting("flow_grpo", "Flow-GRPO: GRPO on steps of an SDE")
    variant: Literal["flow_grpo", "dance_grpo"] = setting(
        "flow_grpo",
        "noise of a flow's steps: eta sqrt(sigma / (1 - sigma)), or eta at all levels",
    )
    ratio: Literal["plain", "guard"] = setting(
        "plain", "of likelihoods, or that of GRPO-Guard, normalised over steps"
    )
    clip_range: float = setting(1e-4, "how far the ratio may move from 1 with a gradient", gt=0)
    eta: float = setting(
        0.7,
        "noise of the rollouts: eta of DDIM; on a flow, the factor of sqrt(sigma / (1 - sigma)), "
        "or the noise itself (variant)",
        gt=0,
        le=1,
    )
    kl: float = setting(0.01, "weight of the distance to the reference (kl_of); 0: none", ge=0)
    guidance: float = setting(4.5, "classifier-free guidance of policy and learner; 1: none", ge=1)
    lr: float = setting(3e-4, "learning rate of AdamW", gt=0)

    @property
    def constant_noise(self) -> bool:
        """In DanceGRPO."""
        return self.variant == "dance_grpo"

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,) = sides
        log_ratio_B = self.log_ratio(image.policy_gap, facts, image)
        if self.ratio == "guard":
            std_B = facts["std"]
            drift_B = self.divergence(image.policy_distance, facts, image)
            log_ratio_B = (log_ratio_B + drift_B) * std_B
        loss_B, metrics = ppo_loss(facts["advantage"], log_ratio_B.exp(), self.clip_range)
        if self.ratio == "guard":
            loss_B = loss_B / (std_B * (2 * facts["kappa"]).sqrt())
        return self.held(loss_B, facts, image), metrics

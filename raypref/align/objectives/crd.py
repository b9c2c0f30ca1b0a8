"""CRD: what the learner's errors say of an image's reward, matched to the reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.decoupled import DecoupledConfig, absolute
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class CRD(DecoupledConfig):
    """(beta (r - mean r) - (A - mean A))^2, r = policy's error - learner's; + kl's distance.

    Zhu et al. 2026 (arXiv 2603.14128), centered reward distillation: the optimum of a reward under
    a divergence has the log-ratio reward / strength plus a constant per prompt. Differences within
    the prompt's group do not have the constant, so they are matched. r is the log-ratio's estimate
    at one timestep; as in the code at hand (Flow-Factory) each error is divided by its own mean
    absolute size, without a gradient (`normalise`). The derivative by r of an image is
    2 beta (beta (r - mean r) - (A - mean A)): a sample's loss is that times its r, with the number
    of a first pass over the group (the metric `loss` is of this form).

    Where policy and learner are one, all r are 0 and the gradient is that of A r. So the policy,
    which draws the images, keeps a part of itself (`policy_keep`); the paper has a sampler beside
    it that follows on its own. Its guided reference in the divergence is not part of this.
    """

    facts: ClassVar[tuple[str, ...]] = ("advantage", "reward", "coefficient")
    whole_groups: ClassVar[bool] = True

    objective: Literal["crd"] = setting("crd", "CRD: centered reward distillation")
    beta: float = setting(1.0, "advantage per unit of the log-ratio", gt=0)
    relative_to: Literal["policy", "reference"] = setting(
        "policy", "whose error an image's log-ratio is relative to"
    )
    normalise: Literal["absolute", "off"] = setting(
        "absolute", "divide each error by its mean absolute size, or not"
    )
    kl: float = setting(
        0.1, "weight of the squared distance between predictions of learner and reference", ge=0
    )
    kl_by_reward: bool = setting(
        False, "multiply kl by the image's reward, cut to 0 .. 1: for rewards of that range"
    )
    policy_keep: float = setting(
        0.25,
        "what the policy keeps of itself when it is refreshed; 0: a copy of the learner",
        ge=0,
        lt=1,
    )

    @property
    def against(self) -> str:  # type: ignore[override]
        """The reference, where its distance or its error counts."""
        return "ref" if self.relative_to == "reference" else super().against

    @property
    def reads_policy(self) -> bool:  # type: ignore[override]
        """Where its error counts."""
        return self.relative_to == "policy"

    def measured(self, sides: Sequence[Residuals]) -> Tensor:
        """The estimate of the log-ratio, [B]."""
        (image,) = sides
        mine = self.relative_to == "policy"
        if self.normalise == "off":
            return -(image.policy_gap if mine else image.gap)
        other_B = image.policy_error if mine else image.reference_error
        other = image.policy if mine else image.reference
        assert other is not None
        return other_B / absolute(other, 1.0) - image.error / absolute(image.learner, 1.0)

    def coefficients(self, numbers_NG: Tensor, facts: Mapping[str, Tensor]) -> Tensor:
        """The derivative of a group's loss by the log-ratio of each image, [N, G]."""
        apart_NG = self.beta * numbers_NG - facts["advantage"]
        return 2 * self.beta * (apart_NG - apart_NG.mean(1, keepdim=True))

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,), coefficient_B = sides, facts["coefficient"]
        ratio_B = self.measured(sides)
        loss_B = coefficient_B * ratio_B
        if self.kl:
            weight_B = facts["reward"].clamp(0, 1) if self.kl_by_reward else 1.0
            loss_B = loss_B + self.kl * weight_B * image.distance
        return loss_B, {
            "log_ratio": ratio_B.detach(),
            "missed": (coefficient_B / (2 * self.beta)).square(),
        }

"""AWM: the denoising error as log-likelihood, in a policy gradient's clipped loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.decoupled import DecoupledConfig, clipped
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals

SMALL = 1e-10  # under the powers of errors, as released


class AWM(DecoupledConfig):
    """max(-A ratio, -A clip(ratio)) + kl |v - reference|^2 + policy_kl |v - policy|^2.

    Xue et al. 2025 (arXiv 2509.25050): the log-likelihood of an image is -w(t) times its denoising
    error, so that ratio = exp(w(t) (policy's error - learner's error)), and where the two are one
    the gradient is that of A w(t) error: pretraining, weighted by advantage. Defaults are those of
    the released code for SD-3.5-M: advantages are at most 1 (`advantage_clip` 5 times
    `advantage_scale` 0.2), the ratio is hardly clipped, and the learner is held to its own moving
    average, which keeps 0.3 of itself per step. That average is the policy here, so it draws the
    images too; with `policy_keep=0` the learner draws them, and `policy_kl` does nothing.

    t of the weight is the share of noise in the sample, 0 to 1: the level of a flow. `power` and
    `root` take the weighted power of an error for the error: t (e^p - c) / p and t sqrt(e).
    """

    facts: ClassVar[tuple[str, ...]] = ("advantage", "level")
    reads_policy: ClassVar[bool] = True

    objective: Literal["awm"] = setting("awm", "AWM: advantage-weighted denoising errors")
    weighting: Literal["uniform", "t", "t2", "root", "power"] = setting(
        "power",
        "w(t) of the error e: 1, t or t^2; or t sqrt(e), t e^power / power in its place "
        "(released: huber, ghuber)",
    )
    power: float = setting(0.25, "with weighting=power, the power", gt=0, le=1)
    clip_range: float = setting(1.0, "how far the ratio may move from 1 with a gradient", gt=0)
    advantage_scale: float = setting(0.2, "what clipped advantages are multiplied by", gt=0)
    kl: float = setting(
        0.003, "weight of the squared distance between predictions of learner and reference", ge=0
    )
    policy_kl: float = setting(
        1.0, "weight of the squared distance between predictions of learner and policy", ge=0
    )
    policy_keep: float = setting(
        0.3,
        "what the policy keeps of itself when it is refreshed; 0: a copy of the learner",
        ge=0,
        lt=1,
    )

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch

        (image,) = sides
        advantage_B = self.advantage_scale * facts["advantage"]
        log_ratio_B = self._log_ratio(image, facts["level"])
        ratio_B = log_ratio_B.exp()
        near_B = ratio_B.clamp(1 - self.clip_range, 1 + self.clip_range)
        loss_B = torch.maximum(-advantage_B * ratio_B, -advantage_B * near_B)
        if self.policy_kl:
            loss_B = loss_B + self.policy_kl * image.policy_distance
        return self.held(loss_B, image), {
            "ratio": ratio_B.detach(),
            "clipped": clipped(advantage_B, log_ratio_B, self.clip_range).to(ratio_B.dtype),
            "policy_distance": image.policy_distance.detach(),
        }

    def _log_ratio(self, image: Residuals, level_B: Tensor) -> Tensor:
        """The log-likelihood under the learner less that under the policy, [B]."""
        import torch

        if self.weighting in ("uniform", "t", "t2"):
            return -(level_B ** {"uniform": 0, "t": 1, "t2": 2}[self.weighting]) * image.policy_gap
        power, over = (0.5, 1.0) if self.weighting == "root" else (self.power, self.power)
        # (o + gap)^p - o^p, without the difference of two close numbers.
        before_B = image.policy_error + SMALL
        change_B = torch.expm1(power * torch.log1p(image.policy_gap / before_B))
        return -level_B * before_B**power * change_B / over

"""DiffusionNFT: towards good images and, as the mirror image of the policy, away from bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.decoupled import DecoupledConfig, absolute
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class NFT(DecoupledConfig):
    """clip / beta * (R |v+ - y|^2 + (1 - R) |v- - y|^2) + kl |learner - reference|^2.

    Zheng et al. 2025 (arXiv 2509.16117): v+ = o + beta (v - o) and v- = o - beta (v - o), where v
    is the learner's prediction and o the policy's; R = clip(A / clip, -1, 1) / 2 + 1/2 is how good
    an image is, `clip` being `advantage_clip`. The factor in front is the released code's: where
    learner and policy are one, the gradient is that of A |v - y|^2 whatever beta and clip are.

    As released, errors are those of the clean latents, each divided by its own mean absolute size
    (without a gradient). Both can be turned off; then both errors are inner products of residuals:
    |v+ - y|^2 = o^2 + beta (v^2 - o^2) - beta (1 - beta) |v - o|^2, and v- with -beta.

    The release lets the policy keep 0.001 n of itself at step n, at most 0.5: here it is 0.5 from
    the start (`policy_keep`). It trains on 48 groups of 24 images with every step of the sampler;
    here timesteps are drawn from the training distribution. The `kl` is its SD-3.5-M's.
    """

    facts: ClassVar[tuple[str, ...]] = ("advantage", "clean_scale")
    reads_policy: ClassVar[bool] = True

    objective: Literal["nft"] = setting("nft", "DiffusionNFT: negative-aware fine-tuning")
    beta: float = setting(
        1.0, "how far both targets are from the policy; released: 1, and 0.1 for OCR", gt=0
    )
    space: Literal["clean", "prediction"] = setting(
        "clean", "whose errors: of the clean latents, as released, or of the prediction"
    )
    normalise: Literal["absolute", "off"] = setting(
        "absolute", "divide each error by its mean absolute size, as released, or not"
    )
    kl: float = setting(
        1e-4, "weight of the squared distance between predictions of learner and reference", ge=0
    )
    policy_keep: float = setting(
        0.5,
        "what the policy keeps of itself when it is refreshed; 0: a copy of the learner",
        ge=0,
        lt=1,
    )

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        (image,) = sides
        good_B = (facts["advantage"] / self.advantage_clip).clamp(-1, 1) / 2 + 0.5
        scale = facts["clean_scale"] if self.space == "clean" else 1.0
        towards_B = self._missed(image, self.beta, scale)
        away_B = self._missed(image, -self.beta, scale)
        loss_B = good_B * towards_B + (1 - good_B) * away_B
        loss_B = self.advantage_clip / self.beta * loss_B
        return self.held(loss_B, image), {
            "goodness": good_B,
            "towards": towards_B.detach(),
            "away": away_B.detach(),
            "policy_distance": image.policy_distance.detach(),
        }

    def _missed(self, image: Residuals, share: float, scale: Tensor | float) -> Tensor:
        """The error of policy + share * (learner - policy), [B]."""
        mixed_B = share * image.policy_gap - share * (1 - share) * image.policy_distance
        error_B = image.policy_error + mixed_B
        if self.normalise == "off":
            return scale * scale * error_B
        assert image.policy is not None
        residual = image.policy + share * (image.learner.detach() - image.policy)
        return scale * scale * error_B / absolute(residual, scale)

"""Diffusion-SDPO: Diffusion-DPO whose rejected side may not make the chosen image worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals


class SDPO(PairwiseConfig):
    """-log sigmoid(logit), the gradient of the rejected side times lambda.

    Fu et al. 2025 (arXiv 2511.03317): lambda = (1 - mu) <w, w> / <w, l>, clipped to 0 .. 1, and 1
    where <w, l> <= 0; w and l are the learner's residuals on the chosen and the rejected side.
    Then, to first order in the network's outputs, the chosen image's error does not rise. The
    value of the loss is that of `dpo`. The released code takes one lambda for all samples of a
    device; here each has its own, so that no sample's loss depends on another.
    """

    objective: Literal["sdpo"] = setting("sdpo", "Diffusion-SDPO: the rejected side is held back")
    mu: float = setting(
        0.9,
        "share of the chosen side's descent that the rejected side must leave, 0 to 1",
        ge=0,
        le=1,
    )

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch
        import torch.nn.functional as F

        from raypref.align.residuals import between

        chosen, rejected = sides
        logit, metrics = self.logit(sides)
        along = between(chosen, rejected).detach()
        tiny = torch.finfo(along.dtype).tiny
        most = (1 - self.mu) * chosen.error.detach() / along.clamp(min=tiny)
        share = torch.where(along > 0, most.clamp(max=1), 1.0)
        # The same value with the gradient of the rejected side scaled: its gap's sign in the logit
        # is +beta/2.
        held_back = 0.5 * self.beta * (share - 1) * rejected.error
        loss = -F.logsigmoid(logit + (held_back - held_back.detach()))
        return loss, metrics | {"rejected_share": share}

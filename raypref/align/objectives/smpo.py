"""SmPO: Diffusion-DPO whose logit shrinks where people would disagree."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from raypref.align.config import Metrics
from raypref.align.objectives.pairwise import PairwiseConfig
from raypref.core.config import setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.residuals import Residuals

COLUMNS = {
    "scores": ("pickscore_chosen", "pickscore_rejected"),
    "gap": ("gap",),
    "votes": ("vote_share",),
}


class SmPO(PairwiseConfig):
    """-log sigmoid(sharpness * (2 p - 1) * logit), p the probability that the label is right.

    Lu et al. 2025 (arXiv 2506.02698, eq. 9): smoothing both sides' likelihoods by p scales the
    logit by 2 p - 1, so a pair that nobody can tell apart gives no gradient, and one with p below
    1/2 counts as if swapped. The paper's p is the softmax of the two PickScores; its code has
    sharpness 10. Votes and gaps as sources of p are ours. The paper also inverts the images to find
    their noise (ReNoise); here noise is drawn, as in `dpo`.
    """

    objective: Literal["smpo"] = setting("smpo", "SmPO: labels smoothed by their probability")
    label_from: Literal["scores", "gap", "votes"] = setting(
        "scores",
        "where p comes from: sigmoid(scale * difference of the PickScores), sigmoid(scale * column "
        "gap), or the share of votes for the chosen image, column vote_share",
    )
    scale: float = setting(1.0, "logits of p per point of PickScore or unit of gap", gt=0)
    sharpness: float = setting(10.0, "factor of the logit where p is 1", gt=0)

    @property
    def facts(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns that p is made of."""
        return COLUMNS[self.label_from]

    def instead(self, columns: Collection[str]) -> str:
        """Sources of p that these columns have."""
        return " or ".join(f"label_from={n}" for n, own in COLUMNS.items() if {*own} <= {*columns})

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics."""
        import torch
        import torch.nn.functional as F

        logit, metrics = self.logit(sides)
        if self.label_from == "votes":
            certainty = 2 * facts["vote_share"] - 1
        else:
            gap = (
                facts["gap"]
                if self.label_from == "gap"
                else facts["pickscore_chosen"] - facts["pickscore_rejected"]
            )
            certainty = torch.tanh(0.5 * self.scale * gap)  # 2 sigmoid(x) - 1
        return -F.logsigmoid(self.sharpness * certainty * logit), metrics | {
            "label_probability": 0.5 * (1 + certainty)
        }

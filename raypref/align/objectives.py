"""Training objectives: pure functions of per-sample denoising errors.

An error is the squared distance between target and prediction, averaged over C, H, W. Each
objective maps the four errors of a comparison to one loss a sample and to metrics a sample; the
caller averages. Source: method section 2 and 3 (paper, equations 1 and 2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, Tensor]


class Errors(NamedTuple):
    """The four errors of B comparisons, each [B]."""

    winner: Tensor  # of the network being trained, on the preferred sample
    loser: Tensor  # the same on the dispreferred sample
    ref_winner: Tensor  # of the frozen reference
    ref_loser: Tensor


def denoising_error(prediction_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Mean squared error over C, H, W, in float32 or better: [B]."""
    precise = torch.promote_types(prediction_BCHW.dtype, torch.float32)
    difference = prediction_BCHW.to(precise) - target_BCHW.to(precise)
    return difference.square().flatten(1).mean(1)


def dro_loss(errors: Errors, *, margin: float) -> tuple[Tensor, Metrics]:
    """Diffusion-DRO: max(m, diff) with diff = (winner - ref) - (loser - ref).

    The winner is a real photograph, the loser a state of the policy's own trajectory. The released
    code computes max(0, diff - m), which differs by the constant m: same gradient.

    Args:
        errors: four errors a sample.
        margin: m, slightly below 0; samples already better than the reference by it stop pushing.
    """
    diff = (errors.winner - errors.ref_winner) - (errors.loser - errors.ref_loser)
    return diff.clamp(min=margin), {
        "diff": diff.detach(),
        "hinge_active": (diff > margin).to(diff.dtype).detach(),
    }


def dpo_loss(errors: Errors, *, beta: float) -> tuple[Tensor, Metrics]:
    """Diffusion-DPO: -log sigmoid(-beta/2 * ((winner - ref) - (loser - ref))).

    The paper's beta * T is 0.5 * beta here, as in the released code (Wallace et al. 2024, eq. 14).

    Args:
        errors: four errors a sample.
        beta: strength of the pull to the reference; 2000 for SD-1.5.
    """
    diff = (errors.winner - errors.ref_winner) - (errors.loser - errors.ref_loser)
    inside = -0.5 * beta * diff
    return -F.logsigmoid(inside), {
        "diff": diff.detach(),
        "implicit_accuracy": (inside > 0).to(diff.dtype).detach(),
    }

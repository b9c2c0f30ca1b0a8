"""Training objectives: pure functions of per-sample denoising errors.

An error is the squared distance between target and prediction, averaged over C, H, W. Each
objective maps the four errors of a comparison to one loss a sample and to metrics a sample; the
caller averages. `dro` and `dpo` are the paper's (its equations 1 and 2); "survey" is arXiv
2409.07253.
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
    loser: Tensor  # the same on the dispreferred sample; [0], as its reference, where there is none
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
    logit, metrics = _preference(errors, beta)
    return -F.logsigmoid(logit), metrics


def dpo_sft_loss(errors: Errors, *, beta: float, weight: float) -> tuple[Tensor, Metrics]:
    """Diffusion-DPO plus the winner's own error, so that the winner cannot get worse unnoticed.

    The form of Iterative RPO (Pang et al. 2024, arXiv 2404.19733, eq. 1: L_DPO + alpha L_NLL); the
    likelihood of a diffusion model is its denoising error (Ho et al. 2020, eq. 14), here in the
    units of DPO's logit: `dpo + weight * beta/2 * winner`.

    Args:
        errors: four errors a sample.
        beta: as in `dpo_loss`.
        weight: alpha; 0 is `dpo_loss`.
    """
    loss_B, metrics = dpo_loss(errors, beta=beta)
    return loss_B + weight * 0.5 * beta * errors.winner, metrics


def ipo_loss(errors: Errors, *, beta: float) -> tuple[Tensor, Metrics]:
    """IPO: the squared distance of DPO's logit to 1/2.

    Azar et al. 2024 (arXiv 2310.12036, eq. 17; survey, eq. 11): (h - 1/(2 beta))^2, where beta * h
    is DPO's logit. This is that times beta^2: the same minimum, with gradients of DPO's size, for
    which clipping and AdamW's eps were chosen.

    Args:
        errors: four errors a sample.
        beta: as in `dpo_loss`.
    """
    logit, metrics = _preference(errors, beta)
    return (logit - 0.5).square(), metrics


def hinge_loss(errors: Errors, *, beta: float) -> tuple[Tensor, Metrics]:
    """Hinge on DPO's logit: max(0, 1 - logit).

    SLiC's calibration loss (Zhao et al. 2023, arXiv 2305.10425, section 2) on likelihoods relative
    to the reference, as RSO writes it (Liu et al. 2024, arXiv 2309.06657, hinge-norm with
    gamma = beta).

    Args:
        errors: four errors a sample.
        beta: as in `dpo_loss`.
    """
    logit, metrics = _preference(errors, beta)
    return (1 - logit).clamp(min=0), metrics | {
        "hinge_active": (logit < 1).to(logit.dtype).detach()
    }


def kto_loss(errors: Errors, *, beta: float) -> tuple[Tensor, Metrics]:
    """Diffusion-KTO: (1 - U(winner's reward)) + (1 - U(-loser's reward)) with U the sigmoid.

    Li et al. 2024 (arXiv 2404.04465, section 4; survey, eq. 13, with both lambdas 1). The reward is
    -beta/2 * (error - ref), so that winner's minus loser's is DPO's logit. Both images of a pair
    enter with a utility of their own: one may gain without the other.

    The papers subtract a reference point, beta times the divergence from the reference estimated
    over the batch at hand. Here it is 0, its value where training starts: the loss of a sample then
    does not depend on what is beside it, nor the run on how a batch is split.

    Args:
        errors: four errors a sample.
        beta: as in `dpo_loss`.
    """
    _, metrics = _preference(errors, beta)
    reward_winner = -0.5 * beta * (errors.winner - errors.ref_winner)
    reward_loser = -0.5 * beta * (errors.loser - errors.ref_loser)
    # 1 - sigmoid(x) = sigmoid(-x), without the cancellation.
    return torch.sigmoid(-reward_winner) + torch.sigmoid(reward_loser), metrics


def sft_loss(errors: Errors) -> tuple[Tensor, Metrics]:
    """Supervised fine-tuning: the winner's error alone (Ho et al. 2020, eq. 14).

    Args:
        errors: those of the winner; there need be no loser.
    """
    return errors.winner, {}


def _preference(errors: Errors, beta: float) -> tuple[Tensor, Metrics]:
    """DPO's logit, positive where the learner prefers the winner more than the reference does."""
    diff = (errors.winner - errors.ref_winner) - (errors.loser - errors.ref_loser)
    logit = -0.5 * beta * diff
    return logit, {
        "diff": diff.detach(),
        "implicit_accuracy": (logit > 0).to(diff.dtype).detach(),
    }

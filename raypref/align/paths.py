"""The stochastic steps of rollouts: what a likelihood of them is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Path(NamedTuple):
    """The T stochastic steps of N images, first to last; steps without noise are left out.

    A step x' = A x + B prediction + std xi has the log-likelihood -kappa * |prediction - target|^2
    and a constant, with target = (x' - A x) / B and kappa = B^2 / (2 std^2).
    """

    states_TNCHW: Tensor  # x, before the step
    targets_TNCHW: Tensor
    policy_TNCHW: Tensor  # the policy's prediction at x, guided where the rollout was
    timesteps_TN: Tensor
    kappa_TN: Tensor
    std_TN: Tensor

    def joined(self, others: Sequence[Path]) -> Path:
        """The images of several paths of as many steps."""
        return Path(*(torch.cat(each, dim=1) for each in zip(self, *others, strict=True)))

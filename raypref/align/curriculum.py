"""A curriculum over the pairs: those of the largest gap first.

After Curriculum DPO (Croitoru et al. 2025, arXiv 2405.13637), which trains on the pairs that are
told apart most easily before it adds harder ones. There they come in a few chunks; here one by one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raypref.align.config import TrainingConfig
from raypref.align.latents import PairData


def easiest_first(data: PairData) -> Tensor:
    """Indices of the rows by falling `gap`, [N]; equal gaps in the order of their ids."""
    return torch.argsort(data.facts["gap"], descending=True, stable=True)


def opened(training: TrainingConfig, step: int, count: int) -> int:
    """How many of `count` rows are open at a step, counted from 0: from then on linearly more."""
    until = training.curriculum_end * training.steps
    done = step / until if step < until else 1.0
    share = training.curriculum_start + (1 - training.curriculum_start) * done
    return min(count, math.ceil(share * count))


def instead_of(row: int, easiest_N: Tensor, count: int) -> int:
    """The row that is trained on where the usual order of an epoch has `row`.

    That order is folded onto the `count` open rows: an epoch visits each of them equally often, but
    for one time. No random number is drawn. Once all are open, the usual order holds.
    """
    if count == len(easiest_N):
        return row
    return int(easiest_N[row * count // len(easiest_N)])

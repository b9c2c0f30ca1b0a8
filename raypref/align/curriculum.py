"""A curriculum over the pairs: those of the largest gap first.

After Curriculum DPO (Croitoru et al. 2025, arXiv 2405.13637), which trains on the pairs that are
told apart most easily before it adds harder ones. There they come in a few chunks; here one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raypref.align.config import TrainingConfig
from raypref.align.pair_data import PairData
from raypref.align.residuals import Draw


def easiest_first(data: PairData) -> Tensor:
    """Indices of the rows by falling `gap`, [N]; equal gaps in the order of their ids."""
    return torch.argsort(data.facts["gap"], descending=True, stable=True)


def opened(training: TrainingConfig, step: int, count: int) -> int:
    """How many of `count` rows are open at a step, counted from 0: from then on linearly more."""
    until = training.curriculum_end * training.steps
    done = step / until if step < until else 1.0
    share = training.curriculum_start + (1 - training.curriculum_start) * done
    return max(1, round(share * count))


def reordered(
    draws: Sequence[Draw], easiest_N: Tensor, training: TrainingConfig, *, step: int
) -> list[Draw]:
    """The entries of a step on open rows, in place of those that its epoch's order comes to.

    That order is folded onto the open rows: an epoch visits each of them equally often, but for one
    time. No random number is drawn. Once all rows are open, the usual order holds.
    """
    rows = len(easiest_N)
    count = opened(training, step, rows)
    if count == rows:
        return list(draws)
    return [draw._replace(pair=int(easiest_N[draw.pair * count // rows])) for draw in draws]

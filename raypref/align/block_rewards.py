"""Scores of all images of a block to rewards and advantages: the same numbers on every rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raypref.align.advantages import PromptStatistics, within_batch, within_groups
from raypref.core.config import InputError


class Rewards(NamedTuple):
    """What is known of the M images of a block, float64, on the CPU; groups of G follow each other.

    An image that a reward gave no score has the mean of its group, and the advantage 0.
    """

    scores: Mapping[str, Tensor]  # by reward, each [M]
    reward_M: Tensor
    advantage_M: Tensor
    unscored_M: Tensor  # 1 where there is no reward, else 0
    spread_M: Tensor  # the deviation of the rewards of an image's group


def rewards_of(
    scores: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    group: int,
    advantage: str,
    clip: float,
    prompts: Sequence[int],
    statistics: PromptStatistics,
    block: int,
) -> Rewards:
    """Rewards and advantages of the M images of a block.

    Args:
        scores: by reward, each float64 [M]; what is not finite is missing.
        weights: of the rewards that are trained on.
        group: G, images per prompt.
        advantage: `batch`, `prompt`, or what `within_groups` takes.
        clip: largest size of an advantage.
        prompts: number of each image's prompt.
        statistics: of the prompts so far; where the advantage is `prompt`, the block's are added.
        block: its number.

    Raises:
        InputError: a reward scored no image.
    """
    for name, score_M in scores.items():
        if not score_M.isfinite().any():
            raise InputError(f"the reward {name} gave none of {len(score_M)} images a score")
    total_M = torch.stack([weights[name] * scores[name] for name in weights]).sum(0)
    scored_M = total_M.isfinite()
    if not scored_M.any():
        raise InputError(f"no image was scored by all of {', '.join(weights)}")
    reward_M = _filled(total_M, group)
    if advantage == "batch":
        found_M = within_batch(reward_M, reward_M[scored_M])
    elif advantage == "prompt":
        own = [prompt for prompt, scored in zip(prompts, scored_M, strict=True) if scored]
        statistics.add(block, own, reward_M[scored_M].tolist())
        found_M = statistics.advantages(reward_M, prompts, reward_M[scored_M])
    else:
        found_M = within_groups(reward_M.view(-1, group), advantage).flatten()
    found_M = found_M.clamp(-clip, clip).where(scored_M, torch.zeros_like(found_M))
    deviation_N = reward_M.view(-1, group).std(1, correction=0)
    return Rewards(
        {name: _filled(score_M, group) for name, score_M in scores.items()},
        reward_M,
        found_M,
        (~scored_M).double(),
        deviation_N.repeat_interleave(group),
    )


def _filled(values_M: Tensor, group: int) -> Tensor:
    """What is not finite replaced by the mean of the group, or of all where a group has none."""
    values_M = values_M.where(values_M.isfinite(), torch.full_like(values_M, torch.nan))
    groups_NG = values_M.view(-1, group)
    mean_N1 = groups_NG.nanmean(1, keepdim=True)
    mean_N1 = mean_N1.where(~mean_N1.isnan(), values_M.nanmean())
    return groups_NG.where(~groups_NG.isnan(), mean_N1).flatten()


def diversity(embedding_ND: Tensor, group: int) -> Tensor:
    """One less the mean cosine of each image with the others of its group, float64 [N].

    Args:
        embedding_ND: of N images, in any length.
        group: images per prompt, which follow each other.
    """
    unit = torch.nn.functional.normalize(embedding_ND.double(), dim=1)
    unit = unit.view(-1, group, unit.shape[1])
    cosine = unit @ unit.transpose(1, 2)
    others = (cosine.sum(2) - cosine.diagonal(dim1=1, dim2=2)) / (group - 1)
    return (1 - others).flatten()

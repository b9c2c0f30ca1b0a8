"""Pref-GRPO: an image's advantage is the share of its group that it beats."""

from __future__ import annotations

from typing import Literal

from raypref.align.objectives.awm import AWM
from raypref.core.config import setting


class PrefGRPO(AWM):
    """AWM's loss with win rates for rewards.

    Wang et al. 2025 (arXiv 2508.20751): differences of rewards within a group may be tiny, and
    dividing by their deviation then blows up noise, which is what is learned (reward hacking). So
    images of a group are compared in pairs, and the reward is the share of comparisons won. The
    paper asks a pairwise judge; here the higher `rewards` sum wins, and equal ones share.

    The paper takes Flow-GRPO's loss on the steps of a path. Here it is AWM's on noised images: any
    solver draws them, and it trains all families. The other form is an objective on paths with
    `advantage=win_rate`.
    """

    objective: Literal["pref_grpo"] = setting(  # type: ignore[assignment]
        "pref_grpo", "Pref-GRPO: AWM on win rates within the group"
    )
    advantage: Literal["win_rate"] = setting(
        "win_rate", "reward to advantage: the share of the group that an image beats, standardised"
    )

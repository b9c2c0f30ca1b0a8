"""The reward models there are, by name: to add one, add its line to `RewardsConfig`."""

from __future__ import annotations

from raypref.config import Section
from raypref.rewards.base import EmbedderConfig, RewardConfig
from raypref.rewards.pickscore import PickScoreConfig

EMBEDDERS = ("pickscore", "clipscore", "dinov2")  # those with an `embed`, for the distances
EMBED_ONLY = ("dinov2",)  # score nothing


class RewardsConfig(Section):
    """Reward models besides PickScore, whose section is `pickscore`: curation uses it too.

    A field's name is the reward's name in `metrics.rewards`, in the scores and in the tables.
    """


def reward_names() -> list[str]:
    """Names of all rewards."""
    return ["pickscore", *(n for n in RewardsConfig.model_fields if n not in EMBED_ONLY)]


def embedder_names() -> list[str]:
    """Names of all embedders."""
    return [name for name in EMBEDDERS if name in ("pickscore", *RewardsConfig.model_fields)]


def reward(name: str, pickscore: PickScoreConfig, others: RewardsConfig) -> RewardConfig:
    """The settings of one of `reward_names`."""
    found: RewardConfig = {"pickscore": pickscore, **dict(others)}[name]
    return found


def embedder(name: str, pickscore: PickScoreConfig, others: RewardsConfig) -> EmbedderConfig:
    """The settings of one of `embedder_names`."""
    found: EmbedderConfig = {"pickscore": pickscore, **dict(others)}[name]
    return found

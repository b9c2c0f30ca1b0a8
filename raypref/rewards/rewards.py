"""The reward models there are, by name: to add one, add its line to `RewardsConfig`."""

from __future__ import annotations

from typing import Any

from raypref.config import Section
from raypref.rewards.aesthetic import AestheticConfig
from raypref.rewards.base import EmbedderConfig, RewardConfig
from raypref.rewards.clipscore import ClipScoreConfig
from raypref.rewards.deqa import DeQAConfig
from raypref.rewards.dinov2 import DinoV2Config
from raypref.rewards.hpsv2 import HPSv2Config
from raypref.rewards.hpsv3 import HPSv3Config
from raypref.rewards.imagereward import ImageRewardConfig
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.realism import RealismConfig
from raypref.rewards.unifiedreward import UnifiedRewardConfig
from raypref.rewards.vqascore import VQAScoreConfig

EMBEDDERS = ("pickscore", "clipscore", "dinov2")  # those with an `embed`, for the distances
EMBED_ONLY = ("dinov2",)  # score nothing
# Models of billions of weights: never in memory beside another one.
LARGE = (DeQAConfig, HPSv3Config, UnifiedRewardConfig, VQAScoreConfig)


class RewardsConfig(Section):
    """Reward models besides PickScore, whose section is `pickscore`: curation uses it too.

    A field's name is the reward's name in `metrics.rewards`, in the scores and in the tables.
    """

    imagereward: ImageRewardConfig = ImageRewardConfig()
    unifiedreward: UnifiedRewardConfig = UnifiedRewardConfig()
    hpsv3: HPSv3Config = HPSv3Config()
    deqa: DeQAConfig = DeQAConfig()
    aesthetic: AestheticConfig = AestheticConfig()
    hpsv2: HPSv2Config = HPSv2Config()
    clipscore: ClipScoreConfig = ClipScoreConfig()
    vqascore: VQAScoreConfig = VQAScoreConfig()
    realism: RealismConfig = RealismConfig()
    dinov2: DinoV2Config = DinoV2Config()


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


def runtime_env(config: RewardConfig) -> dict[str, Any] | None:
    """The environment of their own that a reward's workers need, if any."""
    return config.runtime_env if isinstance(config, DeQAConfig) else None

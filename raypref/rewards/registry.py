"""The rewards by name: one line each, the paper's six first, in the order of the tables.

Settings are read where torch is not: a file imports it in its functions.
"""

from raypref.rewards.aesthetic import AestheticConfig
from raypref.rewards.clipscore import ClipScoreConfig
from raypref.rewards.config import RewardConfig
from raypref.rewards.deqa import DeQAConfig
from raypref.rewards.dinov2 import DinoV2Config
from raypref.rewards.hpsv2 import HPSv2Config
from raypref.rewards.hpsv3 import HPSv3Config
from raypref.rewards.imagereward import ImageRewardConfig
from raypref.rewards.perception import PerceptionConfig
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.realism import RealismConfig
from raypref.rewards.unifiedreward import UnifiedRewardConfig
from raypref.rewards.vqascore import VQAScoreConfig

# By the name in `metrics.rewards`, in the scores and in `rewards.NAME`.
REWARDS: dict[str, type[RewardConfig]] = {
    "pickscore": PickScoreConfig,
    "imagereward": ImageRewardConfig,
    "unifiedreward": UnifiedRewardConfig,
    "hpsv3": HPSv3Config,
    "deqa": DeQAConfig,
    "aesthetic": AestheticConfig,
    "hpsv2": HPSv2Config,
    "clipscore": ClipScoreConfig,
    "vqascore": VQAScoreConfig,
    "perception": PerceptionConfig,
    "realism": RealismConfig,
    "dinov2": DinoV2Config,
}


def reward_names() -> list[str]:
    """Names of all that score."""
    return [name for name, kind in REWARDS.items() if kind.scores]


def embedder_names() -> list[str]:
    """Names of all that embed, for the distances."""
    return [name for name, kind in REWARDS.items() if kind.embeds]

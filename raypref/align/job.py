"""What a training worker is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raypref.align.config import TrainingConfig
from raypref.align.reward_groups import ScoredBy
from raypref.core.device import OtherDType
from raypref.core.ledger import Ledger
from raypref.models.backbone import BackboneConfig
from raypref.models.lora_config import LoraConfig
from raypref.rewards.config import RewardConfig


@dataclass(frozen=True)
class TrainingJob:
    """One training, for its workers. Paths are absolute: workers have other working directories.

    `draws` names the stream of random numbers: trainings with the same stream see equal samples.
    """

    name: str
    draws: str
    base: BackboneConfig
    lora: LoraConfig
    training: TrainingConfig
    cache: Ledger
    pairs: Ledger | None  # whose columns the training reads; None where it reads none
    folder: str
    start: str | None
    seed: int
    shared: str  # name of the LoRA's second file, of `lora_formats.shared_name`
    # What scores images, by name: rewards that are trained on, and those that are held out.
    rewards: Mapping[str, RewardConfig] = field(default_factory=dict)
    vae_dtype: OtherDType = ""  # of the autoencoder that decodes them; empty: the base's
    scored_by: Sequence[ScoredBy] = ()  # by which actors; empty: by the worker itself

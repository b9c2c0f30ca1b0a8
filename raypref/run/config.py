"""All settings of a run, from the sections beside the code that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from raypref.align import plan
from raypref.align.latents import CacheConfig
from raypref.core.config import setting
from raypref.core.tracking import TrackingConfig
from raypref.curate.graph import CurateConfig
from raypref.engine.stream import StreamConfig
from raypref.evaluate.generate import GenerateConfig
from raypref.evaluate.graph import TableConfig
from raypref.evaluate.measures import MetricsConfig
from raypref.judge.pairs import JudgeConfig
from raypref.models.backbone import BackboneConfig
from raypref.models.fuse import ModelConfig
from raypref.models.lora_config import LoraConfig
from raypref.rewards.rewards import Rewards


class RunConfig(CurateConfig):
    """All settings of a run: those of curation, and these."""

    renamed: ClassVar[Mapping[str, str]] = {
        "stage1": "train.stage1",
        "stage2": "train.stage2",
        "sft": "train.sft",
    }

    run: str = setting("run", "name of the run; its folder is <storage>/<run>", min_length=1)
    storage: str = setting("runs", "folder of all runs, local or URI", min_length=1)
    base: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    cache: CacheConfig = CacheConfig()
    trainings: tuple[str, ...] = setting(
        ("stage1", "stage2", "stage2_alone"),
        "trainings of this run, by their names in [train.NAME]; their starts are trained too; []: "
        "only the base and evaluate.loras are evaluated",
        affects_result=False,
    )
    train: plan.Trainings = setting(plan.DEFAULT, "trainings by name", validate_default=True)
    training_seed: int = setting(
        0, "added to seed in trainings only: the same settings with other random numbers"
    )
    evaluate: GenerateConfig = GenerateConfig()
    rewards: Rewards = setting({}, "settings of rewards by name", validate_default=True)
    metrics: MetricsConfig = MetricsConfig()
    table: TableConfig = TableConfig()
    model: ModelConfig = ModelConfig()
    judge: JudgeConfig = JudgeConfig()
    stream: StreamConfig = StreamConfig()
    tracking: TrackingConfig = TrackingConfig()

"""All settings of a run, from the sections beside the code that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from raypref.align import plan
from raypref.align.cache_config import CacheConfig
from raypref.align.online_config import RewardedConfig
from raypref.align.reward_groups import RewardGroup, reward_groups
from raypref.align.sharding import why_unsharded
from raypref.core.config import InputError, setting
from raypref.core.tracking import TrackingConfig
from raypref.engine.stream import StreamConfig
from raypref.evaluate.generate import GenerateConfig
from raypref.evaluate.graph import TableConfig
from raypref.evaluate.labels import OTHERS
from raypref.evaluate.measures import MetricsConfig
from raypref.judge.pairs import JudgeConfig
from raypref.models.backbone import BackboneConfig
from raypref.models.families.registry import INPAINTING
from raypref.models.fuse import ModelConfig
from raypref.models.lora_config import LoraConfig
from raypref.models.single_file import PUBLISHED
from raypref.pairs.config import CANDIDATES, TWINS, PairingConfig, PairsConfig
from raypref.pairs.kinds import KINDS
from raypref.rewards.rewards import require_rewards, reward


class RunConfig(PairingConfig):
    """All settings of a run: those of its pairs, and these."""

    renamed: ClassVar[Mapping[str, str]] = {
        "stage1": "train.stage1",
        "stage2": "train.stage2",
        "sft": "train.sft",
    }

    run: str = setting("run", "name of the run; its folder is <storage>/<run>", min_length=1)
    storage: str = setting("runs", "folder of all runs, local or URI", min_length=1)
    profile: str = setting(
        "paper",
        "which of its profiles a preset or file is taken with; paper: as it is; released: as the "
        "paper's released code, where that differs (docs/method.md); the settings count, not the "
        "name",
        affects_result=False,
    )
    base: BackboneConfig = BackboneConfig()
    lora: LoraConfig = LoraConfig()
    cache: CacheConfig = CacheConfig()
    trainings: tuple[str, ...] = setting(
        KINDS[TWINS].trainings,
        "trainings of this run, by their names in [train.NAME], or names of objectives, which are "
        "taken with their defaults; their starts are trained too; []: only the base and "
        "evaluate.loras are evaluated; by default stage2_alone on labelled pairs and on "
        "candidates, kto_images on labelled images, nft on prompts",
        affects_result=False,
    )
    train: plan.Trainings = setting(plan.DEFAULT, "trainings by name", validate_default=True)
    training_seed: int = setting(
        0, "added to seed in trainings only: the same settings with other random numbers"
    )
    evaluate: GenerateConfig = GenerateConfig()
    metrics: MetricsConfig = MetricsConfig()
    table: TableConfig = TableConfig()
    model: ModelConfig = ModelConfig()
    judge: JudgeConfig = JudgeConfig()
    stream: StreamConfig = StreamConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def measured(self) -> MetricsConfig:
        """What images are measured by: without distances where pairs have no images."""
        distance = self.metrics.distance and bool(KINDS[self.pairs.kind].sides)
        return self.metrics.model_copy(update={"distance": distance})

    @model_validator(mode="before")
    @classmethod
    def _trainings_of_the_kind(cls, values: Any) -> Any:
        """Where no training is named, those that the kind of pairs is for."""
        if not isinstance(values, Mapping) or "trainings" in values:
            return cls._with_tables(values)
        pairs = values.get("pairs", {})
        if isinstance(pairs, PairsConfig):
            kind: object = pairs.kind
        else:
            kind = pairs.get("kind", TWINS) if isinstance(pairs, Mapping) else None
        if not isinstance(kind, str) or kind not in KINDS:  # told with the key
            return values
        return cls._with_tables({**values, "trainings": KINDS[kind].trainings})

    @staticmethod
    def _with_tables(values: Any) -> Any:
        """A training that is called as an objective has a table, so that others find it."""
        if not isinstance(values, Mapping):  # told with the key
            return values
        tables = values.get("train", plan.DEFAULT)
        return {**values, "train": plan.by_objective(values.get("trainings", ()), tables)}

    def reward_groups(self, training: str) -> list[RewardGroup]:
        """The rewards of a training by the actors that hold them; none where its workers do."""
        own = self.train[training]
        if not isinstance(own, RewardedConfig):
            return []
        names = [*own.rewards, *own.held_out]
        rewards = {name: reward(name, self.pickscore, self.rewards) for name in names}
        return reward_groups(own, rewards)

    @model_validator(mode="after")
    def _all_weights_have_a_start(self) -> RunConfig:
        """Refuse LoRA weights under a training of all weights."""
        if self.lora.rank:
            return self
        for ref, key in plan.weights(plan.in_order(self.trainings, self.train)).values():
            raise InputError(
                f"{key}={ref!r}: with lora.rank=0 a training starts from base or from another "
                "training; a network from elsewhere goes into base.network, a LoRA needs lora.rank"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_be_sharded(self) -> RunConfig:
        """Refuse trainings whose workers cannot share the weights."""
        for name, training in self.train.items():
            reason = why_unsharded(training, rank=self.lora.rank)
            if training.sharded and reason:
                raise InputError(f"train.{name}.sharded=true: {reason}")
        return self

    @model_validator(mode="after")
    def _quantised_base_is_one_network(self) -> RunConfig:
        """Refuse what would write to quantised weights, or draw with other ones."""
        base, drawn = self.base, self.evaluate
        if not base.quantise:
            return self
        own = f"base.quantise={base.quantise}"
        if not self.lora.rank:
            raise InputError(
                f"{own}: its weights are frozen, and lora.rank=0 trains all; set lora.rank, or "
                "leave base.quantise out"
            )
        if drawn.fuse:
            raise InputError(
                f"{own}: a LoRA is not merged into quantised weights; leave evaluate.fuse out"
            )
        if drawn.dtype not in ("", base.dtype):
            raise InputError(
                f"evaluate.dtype={drawn.dtype}: with {own} images are drawn with the network that "
                f"is trained on, in base.dtype={base.dtype}; leave evaluate.dtype out"
            )
        return self

    @model_validator(mode="after")
    def _known_rewards(self) -> RunConfig:
        require_rewards("metrics.rewards", self.metrics.rewards, self.rewards)
        require_rewards("judge.rewards", self.judge.rewards, self.rewards)
        for metric in OTHERS:
            if f"heads.{metric}" in self.rewards:
                raise InputError(
                    f"rewards.heads.{metric}: a metric has the name; call the head otherwise"
                )
        return self

    @model_validator(mode="after")
    def _masks_are_there(self) -> RunConfig:
        if self.base.family not in INPAINTING:
            return self
        if self.pairs.kind not in (TWINS, CANDIDATES):
            raise InputError(
                f"base.family={self.base.family} reads masks of the pairs, and "
                f"pairs.kind={self.pairs.kind} has none; take another base.family, or "
                f"pairs.kind={TWINS} or {CANDIDATES}"
            )
        if self.pairs.kind == CANDIDATES and self.perturb.kind == "text2image":
            raise InputError(
                f"base.family={self.base.family} reads masks of the pairs, and candidates of "
                "perturb.kind=text2image have none; take another of the two"
            )
        return self

    @model_validator(mode="after")
    def _scores_of_the_choice(self) -> RunConfig:
        """Refuse, before any painting, trainings that such pairs have no numbers for."""
        if self.pairs.kind != CANDIDATES:
            return self
        for name in self.trainings:
            if (training := self.train.get(name)) is None:  # told elsewhere
                continue
            if training.objective == "capo" and self.choice.by not in ("capo", "caen"):
                raise InputError(
                    f"train.{name}.objective=capo: its target is a difference of scores of 0 to 1, "
                    f"and those of choice.by={self.choice.by} are others; take choice.by=capo or "
                    "caen"
                )
            scored = [c for c in training.columns if c == "gap" or c.startswith("score_")]
            if scored and self.choice.chosen == "photograph":
                raise InputError(
                    f"choice.chosen=photograph: a photograph has no score, and train.{name} reads "
                    f"{', '.join(scored)} of the pairs (its objective or curriculum); take "
                    "choice.chosen=best, or another objective"
                )
        return self

    @model_validator(mode="after")
    def _has_its_rewards(self) -> RunConfig:
        """Refuse trainings on rewards that there are not."""
        for name, training in self.train.items():
            if isinstance(training, RewardedConfig):
                for key in ("rewards", "held_out"):
                    require_rewards(f"train.{name}.{key}", [*getattr(training, key)], self.rewards)
        return self

    @model_validator(mode="after")
    def _rubric_is_of_holes(self) -> RunConfig:
        if self.metrics.rubric and not self.evaluate.hole_files:
            raise InputError(
                "metrics.rubric: answers are about painted holes; add evaluate.holes=PATH"
            )
        return self

    @model_validator(mode="after")
    def _holes_can_be_painted(self) -> RunConfig:
        if self.evaluate.hole_files and self.base.family not in INPAINTING:
            raise InputError(
                f"evaluate.holes: base.family={self.base.family} does not inpaint; take "
                f"base.family={' or '.join(sorted(INPAINTING))}, or evaluate.prompts"
            )
        return self

    @model_validator(mode="after")
    def _merged_file_has_a_layout(self) -> RunConfig:
        if self.model.fused_file and self.base.family not in PUBLISHED:
            raise InputError(
                f"model.fused_file: base.family={self.base.family} has no such layout; there is "
                f"one for {', '.join(PUBLISHED)}"
            )
        return self

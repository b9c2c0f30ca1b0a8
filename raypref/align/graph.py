"""The alignment of one run: where its trainings start, what each makes, what they wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial

from raypref.align import plan
from raypref.align.backprop_config import BackpropConfig
from raypref.align.config import TrainingConfig
from raypref.align.job import TrainingJob
from raypref.align.online_config import RewardedConfig
from raypref.align.reward_groups import check_actors
from raypref.align.rollout_config import RolloutConfig
from raypref.core.config import InputError, results_of
from raypref.core.device import OtherDType
from raypref.core.extras import require_library
from raypref.core.ledger import Ledger, Place, join, placed, read_bytes
from raypref.models import checks, lora_formats
from raypref.models.backbone import BackboneConfig
from raypref.models.families.registry import INPAINTING
from raypref.models.lora_config import LoraConfig
from raypref.rewards.config import RewardConfig


class Alignment:
    """One run's trainings: their jobs and ledgers.

    Args:
        trainings: settings by name, in order, of `plan.in_order`.
        base: the model that is aligned.
        lora: shape of the adapter; with rank 0 all weights are trained.
        cache: the encoded pairs.
        pairs: the pairs.
        columns: names of their columns, known before there are any.
        sides: names of a row's images: one for single labelled images, none for prompts.
        place: where the run's ledgers lie.
        seed: of the trainings.
        run: the run's name, for the files that are handed on.
        reward: settings of a reward by its name.
        vae_dtype: precision of the autoencoder; empty: the base's.
    """

    def __init__(
        self,
        trainings: dict[str, TrainingConfig],
        *,
        base: BackboneConfig,
        lora: LoraConfig,
        cache: Ledger,
        pairs: Ledger,
        columns: Sequence[str],
        sides: Sequence[str],
        place: Place,
        seed: int,
        run: str,
        reward: Callable[[str], RewardConfig],
        vae_dtype: OtherDType = "",
    ) -> None:
        self.reward = reward
        self.vae_dtype = vae_dtype
        self.trainings = trainings
        self.base = base
        self.lora = lora
        self.cache = cache
        self.pairs = pairs
        self.columns = columns
        self.sides = sides
        self.place = place
        self.seed = seed
        self.run = run
        self.final = plan.final(trainings)  # whose LoRA the run is about
        self.weights = plan.weights(trainings)

    @cached_property
    def starts(self) -> dict[str, Ledger]:
        """LoRA weights from elsewhere that trainings start from, by their name in the table."""
        return {
            name: placed(
                self.place, name, results_of({"start": lora_formats.identity(ref, key=key)})
            )
            for name, (ref, key) in self.weights.items()
        }

    @cached_property
    def jobs(self) -> dict[str, TrainingJob]:
        """What to train, by name, in order."""
        starts = {name: ledger.path for name, ledger in self.trained.items()}
        starts |= {ref: self.starts[name].path for name, (ref, _) in self.weights.items()}
        return {
            name: TrainingJob(
                name=name,
                draws=training.draws,
                base=self.base,
                lora=self.lora,
                training=training,
                cache=self.cache,
                pairs=self.pairs if self._reads_pairs(training) else None,
                folder=self.trained[name].path,
                start=starts.get(training.start),  # None: the base
                seed=self.seed,
                shared=lora_formats.shared_name(self.run, name),
                rewards=self.rewards_of(training),
                vae_dtype=self.vae_dtype,
            )
            for name, training in self.trainings.items()
        }

    def rewards_of(self, training: TrainingConfig) -> dict[str, RewardConfig]:
        """Settings of the rewards that a training reads, those it is trained on first."""
        if not isinstance(training, RewardedConfig):
            return {}
        return {name: self.reward(name) for name in (*training.rewards, *training.held_out)}

    @staticmethod
    def _reads_pairs(training: TrainingConfig) -> bool:
        """Whether it reads more of the pairs than what is encoded."""
        return bool(training.columns) or training.labelled or isinstance(training, RewardedConfig)

    @cached_property
    def trained(self) -> dict[str, Ledger]:
        """The ledgers of the trainings."""
        ledgers: dict[str, Ledger] = {}
        starts = {ref: self.starts[name] for name, (ref, _) in self.weights.items()}
        # What is encoded is the same, and all else of the base is in the cache's fingerprint.
        stored = {"base.quantise": self.base.quantise} if self.base.quantise else {}
        for name, training in self.trainings.items():
            settings = {
                "cache": self.cache.fingerprint,
                f"train.{name}": training,
                **self._trained_on(training),
                "lora": self.lora,
                **stored,
                "seed": self.seed,
                **{n: own.fingerprint for n, own in ledgers.items() if n == training.start},
                **{n: own.fingerprint for n, own in starts.items() if n == training.start},
            }
            ledgers[name] = placed(self.place, name, results_of(settings))
        return ledgers

    def _trained_on(self, training: TrainingConfig) -> dict[str, RewardConfig]:
        """The rewards that decide what a training makes."""
        trained = training.rewards if isinstance(training, RewardedConfig) else ()
        return {f"rewards.{name}": self.reward(name) for name in trained}

    @property
    def shown(self) -> dict[str, Ledger]:
        """All that is compared with the base, by name, in the order of the tables."""
        made = {**self.starts, **self.trained}
        return {name: made[name] for name in plan.labels(self.trainings) if name in made}

    def write_missing_shared(self) -> None:
        """Write the second file of LoRAs of a version that had none, or that named it otherwise."""
        if not self.lora.rank:
            return
        component = checks.component_of(self.base)
        for name, ledger in self.trained.items():
            shared = self.jobs[name].shared
            if ledger.state() == "complete" and read_bytes(join(ledger.path, shared)) is None:
                lora_formats.write_shared(ledger.path, name=shared, component=component)

    def checks(self, name: str) -> tuple[Callable[[], None], ...]:
        """What raises InputError before any work where a training cannot be done."""
        return partial(self.check_training, name), partial(self.check_rewards, name)

    def check_training(self, name: str) -> None:
        """Raise InputError: a worker without a share of a step, part of a GPU, a missing fact.

        Or an optimizer without its library; an objective that learns nothing from the scores of
        single images; a hole that the base does not read, that the images of a pair cannot share,
        or that rewards of whole images miss.
        """
        training = self.trainings[name]
        workers, key = training.resources.workers, f"train.{name}"
        if training.region == "hole" and self.base.family not in INPAINTING:
            raise InputError(
                f"{key}.region=hole: base.family={self.base.family} does not inpaint; set it to "
                f"image, or base.family to {' or '.join(sorted(INPAINTING))}"
            )
        if training.flips_apart and self.base.family in INPAINTING:
            raise InputError(
                f"{key}.flip_per=image: base.family={self.base.family} reads one hole for both "
                "images of a pair, so they are mirrored together; set it to pair"
            )
        if training.optimizer == "adamw8bit":
            asked = f"{key}.optimizer=adamw8bit"
            require_library("bitsandbytes", setting=asked, extra="quantised")
            if self.base.dtype == "float64":
                raise InputError(
                    f"{asked}: it works in float32; set base.dtype to it, or take adamw"
                )
        rewarded = isinstance(training, RewardedConfig)
        if rewarded and self.base.family in INPAINTING:
            raise InputError(
                f"{key}.objective={training.objective} learns from rewards of whole images, and "
                f"base.family={self.base.family} paints holes; take another of the two"
            )
        if not self.sides and not rewarded:
            raise InputError(
                f"{key}.objective={training.objective} learns from images of pairs, and the pairs "
                "are prompts alone (pairs.kind=prompts); take an objective on rewards, such as nft"
            )
        if len(self.sides) == 1 and not training.of_single_images:
            paired = "rejected" in training.sides and not isinstance(training, RolloutConfig)
            why = "compares two images" if paired else "does not read scores"
            raise InputError(
                f"{key}.objective={training.objective} {why}, and the pairs are single images with "
                "scores; set it to kto with sample=image, rwr or raft"
            )
        if absent := [column for column in training.columns if column not in self.columns]:
            own = absent[0] in training.facts
            reads = f"objective={training.objective}" if own else "curriculum=easy_first"
            others = training.instead(self.columns) if own else ""
            fix = f"; set {key}.{others}" if others else ""
            raise InputError(
                f"{key}.{reads} reads {', '.join(absent)} of the pairs, "
                f"which have {', '.join(self.columns)}{fix}"
            )
        gpus = training.resources.num_gpus
        if gpus % 1:
            raise InputError(
                f"{key}.resources.num_gpus={gpus:g}: a training's worker takes whole GPUs, since "
                "NCCL refuses two workers on one; set 1, or 0 to train on the CPU"
            )
        most = training.pairs_per_step
        if not 1 <= workers <= most:
            raise InputError(
                f"{key}.resources.workers={workers}: it must be 1 to "
                f"{_in_words(training, key)}, since every worker takes a share of a step's samples"
            )

    def check_rewards(self, name: str) -> None:
        """Raise InputError where models of rewards are missing, or cannot be put where they are."""
        training = self.trainings[name]
        rewards = self.rewards_of(training)
        if isinstance(training, BackpropConfig):
            training.check_rewards(rewards, key=f"train.{name}")
        for config in rewards.values():
            config.check()
        if isinstance(training, RewardedConfig):
            check_actors(training, rewards, key=f"train.{name}")

    def check_starts(self) -> None:
        """Raise InputError where weights to start from are missing or do not fit the adapter."""
        for ref, key in self.weights.values():
            checks.check_lora(self.base, self.lora, ref, key=key)

    def bring_in_starts(self) -> None:
        """Write the weights to start from into the run, in diffusers layout."""
        component = checks.component_of(self.base)
        for name, (ref, key) in self.weights.items():
            ledger = self.starts[name]
            ledger.begin()
            lora_formats.bring_in(ref, key=key, component=component, folder=ledger.path)
            ledger.commit(expected=0, counts={})


def _in_words(training: TrainingConfig, key: str) -> str:
    """The pairs of a step as a part of its batch."""
    batch, parts = f"{key}.batch={training.batch}", training.batch // training.pairs_per_step
    words = {1: batch, 2: f"half of {batch}"}
    return words.get(parts, f"{training.pairs_per_step}, the prompts in {batch}")

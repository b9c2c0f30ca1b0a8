"""The settings that all trainings share, and what an objective adds to them.

An objective is one class in one file of `objectives/`: its own settings, the experience it learns
from, its loss, and when a training has gone wrong. The loop asks the class and knows no more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, TypeAlias

from pydantic import model_validator

from raypref.core.config import Resources, Section, setting

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.align.pair_data import PairData
    from raypref.align.residuals import Draw, Residuals, Samples
    from raypref.models.families.base import Denoiser

Metrics: TypeAlias = "dict[str, Tensor]"  # per sample, each [B]

SAMPLES_COMPARED = 256  # over which the error is compared: one step of the paper's batch


class Experience(Protocol):
    """Makes the samples of an optimizer step (`experience.py`)."""

    def __call__(
        self, denoiser: Denoiser, data: PairData, training: TrainingConfig, draws: Sequence[Draw]
    ) -> Samples:
        """One sample per draw; what is random comes from the draws alone."""


class TrainingConfig(Section):
    """One training, `[train.NAME]`. The common defaults are the paper's for SD-1.5."""

    # Columns of the pairs, numbers, that the loss reads as `facts`.
    facts: ClassVar[tuple[str, ...]] = ()
    # Whether it learns from labelled images: then their `score` is a fact too (`labelled.py`).
    labelled: ClassVar[bool] = False
    # What the learner is compared with: "ref" is the frozen reference, "policy" the policy; "" is
    # nothing, which saves its forward.
    against: ClassVar[str] = "ref"
    # Whether the loss reads the policy's residual beside that of `against`.
    reads_policy: ClassVar[bool] = False
    # Whether all workers call the network equally often, so that they can share its weights.
    shares_weights: ClassVar[bool] = True
    # Whether a sample's loss depends on all images of its prompt (`online_config.py`).
    whole_groups: ClassVar[bool] = False

    objective: str = setting(..., "objective to minimise; it decides which other keys exist")
    like: str = setting(
        "",
        "another training, whose settings are the defaults of this one",
        affects_result=False,
    )
    label: str = setting("", "display name; empty: its name in the settings", affects_result=False)
    start: str = setting(
        "base",
        "base, another training, @NAME (where that training starts), or LoRA weights in a common "
        "layout (docs/running.md): folder, file, OWNER/REPO or OWNER/REPO/FILE on the hub",
    )
    draws: str = setting(
        "", "stream of random numbers: trainings that share one see the same samples; empty: own"
    )
    reference: Literal["start", "base", "ema"] = setting(
        "start",
        "the model to compare with: frozen, the one it starts from or the base; ema: begins as the "
        "first and follows the learner",
    )
    reference_decay: float = setting(
        0.999,
        "with reference=ema, what the reference keeps of itself per optimizer step",
        later=True,
        ge=0,
        lt=1,
    )
    steps: int = setting(1000, "optimizer steps", ge=1)
    batch: int = setting(256, "samples per optimizer step, over all workers", ge=1)
    micro_batch: int = setting(
        8, "samples per worker that go through the network at once", affects_result=False, ge=1
    )
    optimizer: Literal["adamw", "adamw8bit"] = setting(
        "adamw",
        "adamw8bit: AdamW with both moments in 8 bits, by bitsandbytes: a quarter of their memory, "
        "another result by rounding",
        later=True,
    )
    lr: float = setting(1e-4, "learning rate of AdamW", gt=0)
    warmup_steps: int = setting(0, "steps of linear warm-up from 0", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant", "learning rate after the warm-up; linear and cosine end at 0"
    )
    weight_decay: float = setting(1e-2, "weight decay of AdamW", ge=0)
    clip: float = setting(1.0, "largest gradient norm", gt=0)
    ema_decay: float = setting(0.0, "decay of the weights' moving average; 0 is off", ge=0, lt=1)
    ema_every: int = setting(
        1,
        "optimizer steps between updates of the moving average: N updates it after steps N - 1, "
        "2 N - 1, ..., as the released code (SD-3.5-M: ema_decay=0.9 every 8 steps)",
        later=True,
        ge=1,
    )
    caption_dropout: float = setting(0.2, "share of captions replaced by the empty one", ge=0, le=1)
    flip: float = setting(
        0.5, "share of samples mirrored, drawn once per pair (flip_per)", ge=0, le=1
    )
    region: Literal["image", "hole"] = setting(
        "image",
        "where errors count: everywhere, or in the hole alone, for a base that inpaints",
        later=True,
    )
    region_mean: Literal["image", "hole"] = setting(
        "image",
        "with region=hole, what an error in it is divided by: the size of the whole latent, so "
        "that a larger hole weighs more (as Follow-Your-Preference), or that of the hole",
        later=True,
    )
    curriculum: Literal["off", "easy_first"] = setting(
        "off",
        "easy_first: begin with the pairs of the largest gap (column gap) and open the others by "
        "and by",
        later=True,
    )
    curriculum_start: float = setting(
        0.25, "with a curriculum, share of the pairs open at the first step", later=True, gt=0, le=1
    )
    curriculum_end: float = setting(
        0.5,
        "with a curriculum, share of the steps after which all are open",
        later=True,
        ge=0,
        le=1,
    )
    gradient_checkpointing: bool = setting(
        False, "recompute activations in backward to save memory", affects_result=False
    )
    compile: bool = setting(
        False,
        "torch.compile the network's repeated blocks: minutes at the start for quicker steps; "
        "moves results by rounding only, as micro_batch does",
        affects_result=False,
    )
    deterministic: bool = setting(
        False,
        "only algorithms that give the same bits every time, slower on a GPU; on a CPU all do",
        affects_result=False,
    )
    max_error_ratio: float = setting(
        2.0,
        "stop when the error on the chosen images exceeds the reference's by this factor, over the "
        "last 256 samples; without a frozen reference, that of the first 256",
        affects_result=False,
        gt=1,
    )
    max_grad_ratio: float = setting(
        1000.0,
        "stop when the gradient norm exceeds its median over the last 50 steps by this factor",
        affects_result=False,
        gt=1,
    )
    checkpoint_every: int = setting(
        50, "steps between checkpoints: what a kill can cost", affects_result=False, ge=1
    )
    sample_every: int = setting(
        0,
        "steps between two LoRAs kept for the page's samples; 0: none",
        affects_result=False,
        ge=0,
    )
    sharded: bool = setting(
        False,
        "with lora.rank=0, each worker holds a part of all weights, gradients and AdamW's state "
        "(FSDP2): less memory, more communication; moves results by rounding only",
        affects_result=False,
    )
    min_workers: int = setting(
        0,
        "fewest workers to continue with when hosts are lost; 0: wait for all of resources.workers",
        affects_result=False,
        ge=0,
    )
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _reads_its_reference(self) -> Self:
        """Refuse a reference that this objective would ignore."""
        for key in ("reference", "reference_decay"):
            default = type(self).model_fields[key].default
            if self.against != "ref" and getattr(self, key) != default:
                raise ValueError(
                    f"{key}={getattr(self, key)}: the objective {self.objective} reads no "
                    f"reference; leave {key} out, or set it to {default}"
                )
        return self

    @model_validator(mode="after")
    def _reads_its_mean(self) -> Self:
        """Refuse a mean over a hole that errors are not restricted to."""
        if self.region_mean == "hole" and self.region == "image":
            raise ValueError("region_mean=hole: errors count everywhere; set region=hole too")
        return self

    @model_validator(mode="after")
    def _updates_its_average(self) -> Self:
        """Refuse an interval without an average, or one that no step ends."""
        if self.ema_every > 1 and not self.ema_decay:
            raise ValueError(
                f"ema_every={self.ema_every}: no moving average is kept; set ema_decay too"
            )
        if self.steps < self.ema_every - 1:
            raise ValueError(
                f"ema_every={self.ema_every}: with steps={self.steps} the average, which is what "
                "is saved, would never be updated"
            )
        return self

    @property
    def sides(self) -> tuple[str, ...]:
        """Names of a sample's sides, in the order of `Samples.sides`."""
        return ("chosen", "rejected")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the pairs, numbers, that this training reads."""
        return (*self.facts, "gap") if self.curriculum != "off" else self.facts

    @property
    def flips_apart(self) -> bool:
        """Whether chosen and rejected image, both stored, are mirrored independently."""
        return False

    @property
    def of_single_images(self) -> bool:
        """Whether single labelled images are enough: it reads their scores and no second side."""
        return self.labelled and "rejected" not in self.sides

    def instead(self, columns: Collection[str]) -> str:
        """Settings with which pairs of these columns suffice, where now they do not, or ""."""
        return ""

    def check_scores(self, low: float, high: float, *, key: str) -> None:
        """Raise InputError where it cannot learn from scores in this range, both ends included.

        Args:
            low: the lowest score of an image.
            high: the highest.
            key: of this training in the settings, for messages.
        """

    def prepared(self, data: PairData, *, key: str) -> PairData:
        """The pairs as this training reads them: here, as they are.

        Where a loss needs a number over all pairs, or not all pairs are trained on, it is done
        here, once.

        Args:
            data: all pairs.
            key: of this training in the settings, for messages.

        Raises:
            InputError: it cannot train on them.
        """
        return data

    def carried(self, history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
        """Facts that are the same for all samples of a step, from the metrics of earlier steps.

        Those are averages over whole batches, and checkpoints hold them: neither the split of a
        batch nor a kill changes them.

        Args:
            history: metrics of all steps but the last one, which the device may still be busy with.
        """
        return {}

    def experience(self) -> Experience:
        """What makes the samples of an optimizer step: here, stored pairs."""
        from raypref.align.experience import stored_pairs

        return stored_pairs

    def loss(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Metrics]:
        """One loss per sample, [B], and metrics per sample; the loop averages both.

        Args:
            sides: residuals of the networks, one per name in `sides`.
            facts: numbers carried with the samples, each [B], by the names in `facts`.
        """
        raise NotImplementedError

    def reported(
        self, sides: Sequence[Residuals], facts: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """More metrics per sample, each [B], beside those of the loss: here none."""
        return {}

    def weighted(self, loss_B: Tensor, timesteps_B: Tensor, schedule_T: Tensor) -> Tensor:
        """The loss of samples at these timesteps of the training schedule, weighted: as it is."""
        return loss_B

    def health(self, history: Sequence[Mapping[str, float]], *, key: str) -> str:
        """Why a training must stop, or "": the chosen images' error far above the reference's.

        No pairwise objective wants that, and a network several times worse than its reference is
        out of order. The loss does not show it: Diffusion-DRO's is near zero and negative, and
        Diffusion-DPO's may fall while the errors of both sides rise.

        Args:
            history: metrics of every step so far, averages over the batch.
            key: of this training in the settings, for the message.
        """
        return self.error_grown(history, "chosen", key=key)

    def error_grown(self, history: Sequence[Mapping[str, float]], side: str, *, key: str) -> str:
        """As `health`, over the metrics `ref_SIDE` and `SIDE_gap`, or `SIDE_error`.

        A reference that follows the learner gets worse with it: then, and without a reference, the
        error is compared with that of the first samples.
        """
        steps = math.ceil(SAMPLES_COMPARED / self.batch)
        recent = history[-steps:]
        if len(recent) < steps:
            return ""  # too few samples to tell from chance
        if self.against == "ref" and self.reference != "ema":
            before, whose = sum(row[f"ref_{side}"] for row in recent), "the reference's"
        else:
            before, whose = self._error(history[:steps], side), "that at first"
        now = self._error(recent, side)
        if now <= self.max_error_ratio * before:
            return ""
        return (
            f"the error on the {side} images is {now / before:.2f} times {whose}, more than "
            f"{key}.max_error_ratio={self.max_error_ratio:g}"
        )

    def _error(self, rows: Sequence[Mapping[str, float]], side: str) -> float:
        """The learner's error on a side, summed over steps."""
        if not self.against:
            return sum(row[f"{side}_error"] for row in rows)
        return sum(row[f"ref_{side}"] for row in rows) + sum(row[f"{side}_gap"] for row in rows)

    @property
    def samples_at_once(self) -> int:
        """Samples per call of the experience, on one worker."""
        return self.micro_batch

    @property
    def samples_per_draw(self) -> int:
        """Samples that the experience makes of one draw."""
        return 1

    @property
    def draws_per_pair(self) -> int:
        """Draws of a step that follow each other and are of one pair: they stay on one worker."""
        return 1

    @property
    def steps_per_order(self) -> int:
        """Optimizer steps that draw the same pairs."""
        return 1

    @property
    def pairs_per_step(self) -> int:
        """Pairs that an optimizer step draws, over all workers."""
        return self.batch // (self.samples_per_draw * self.draws_per_pair)

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`, counted from 0: a function of it alone."""
        if step < self.warmup_steps:
            return self.lr * step / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        left = {
            "constant": 1.0,
            "linear": max(0.0, 1 - done),
            "cosine": 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
        }
        return self.lr * left[self.schedule]

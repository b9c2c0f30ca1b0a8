"""Which trainings a run has, where each starts, and what its result is called in the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from raypref.align.stage import StageConfig
from raypref.config import InputError

BASE = "base"
Training = Literal["stage1", "stage2", "stage2_alone", "sft"]
# The last of these that is trained is what the run is about.
BY_WEIGHT = ("sft", "stage1", "stage2_alone", "stage2")
# What stage 2 makes of another training, as the tables call it.
_CONTINUED = {"stage1": "both", "sft": "sft_stage2"}


def settle(
    train: Sequence[Training], *, stage1: StageConfig, stage2: StageConfig, sft: StageConfig
) -> dict[str, StageConfig]:
    """The trainings with their settings, in the order in which they run.

    `stage2_alone` is stage 2 without stage 1: the settings of stage 2, from where stage 1 starts.

    Args:
        train: names, in order.
        stage1: settings of stage 1.
        stage2: settings of stage 2.
        sft: settings of supervised fine-tuning.

    Raises:
        InputError: a training stands twice, or starts from nothing that is known.
    """
    alone = stage2.model_copy(update={"start": stage1.start})
    sections: dict[str, StageConfig] = {
        "stage1": stage1,
        "stage2": stage2,
        "stage2_alone": alone,
        "sft": sft,
    }
    settled: dict[str, StageConfig] = {}
    for name in train:
        if name in settled:
            raise InputError(f"train={list(train)}: {name} may stand once")
        start = sections[name].start
        if start in get_args(Training) and start not in settled:
            raise InputError(
                f"{key_of(name)}={start}: {start} must stand before {name} in "
                f"train={list(train)}, or {key_of(name)} be base or LoRA weights"
            )
        if is_weights(start) and "/" not in start and not Path(start).expanduser().exists():
            raise InputError(
                f"{key_of(name)}={start!r} is neither base, nor one of {', '.join(sections)}, nor "
                "a folder, file or hub id (OWNER/REPO) with LoRA weights"
            )
        settled[name] = sections[name]
    return settled


def is_weights(start: str) -> bool:
    """Whether a start names LoRA weights from elsewhere."""
    return start != BASE and start not in get_args(Training)


def key_of(name: str) -> str:
    """The setting that says where a training starts."""
    section = {"stage2_alone": "stage1"}.get(name, name)
    return f"{section}.start"


def imports(trainings: Mapping[str, StageConfig]) -> dict[str, tuple[str, str]]:
    """LoRA weights that trainings start from: name in the tables to (reference, setting)."""
    keys: dict[str, str] = {}
    for name, stage in trainings.items():
        if is_weights(stage.start):
            keys.setdefault(stage.start, key_of(name))
    return {
        "start" if number == 1 else f"start_{number}": (ref, key)
        for number, (ref, key) in enumerate(keys.items(), 1)
    }


def shown_as(name: str, trainings: Mapping[str, StageConfig]) -> str:
    """What a training's result is called in the tables."""
    if name != "stage2":
        return name
    return _CONTINUED.get(trainings[name].start, name)


def final(trainings: Mapping[str, StageConfig]) -> str:
    """The training whose LoRA the run is about."""
    return next(name for name in reversed(BY_WEIGHT) if name in trainings)


def lineage(name: str, trainings: Mapping[str, StageConfig]) -> list[str]:
    """A training and those that it continues, the first of them first."""
    chain = [name]
    while (start := trainings[chain[0]].start) in trainings:
        chain.insert(0, start)
    return chain

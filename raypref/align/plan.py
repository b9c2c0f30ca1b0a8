"""Which trainings a run has: their settings by name, their order, what their results are called."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, SerializeAsAny

from raypref.align.config import TrainingConfig
from raypref.align.objectives.registry import OBJECTIVES
from raypref.core.config import InputError, Tables, build

BASE = "base"
WHERE = "@"  # "@NAME" as a start: where the training NAME starts
# Folders of a run that hold something else.
# fmt: off
RESERVED = frozenset((
    "arena", "arena-page", "base", "cache", "config", "curate", "evaluation", "export", "fused",
    "images", "judge", "labels", "mlflow", "pairs", "photos", "prompts", "rejects", "report",
    "samples", "start", "trainings",
))
# fmt: on
# The paper's two stages, the second without the first, KTO on labelled images, the plain baseline.
DEFAULT: dict[str, dict[str, Any]] = {
    "stage1": {"objective": "dro", "label": "stage 1", "steps": 1600, "ema_decay": 0.9999},
    "stage2": {
        "objective": "dpo",
        "label": "stage 2",
        "start": "stage1",
        "lr": 2.56e-6,
        "warmup_steps": 125,
    },
    "stage2_alone": {
        "like": "stage2",
        "label": "stage 2 alone",
        "start": "@stage1",
        "draws": "stage2",  # the same samples in the same order: only the start differs
    },
    "kto_images": {
        "like": "stage2_alone",
        "objective": "kto",
        "sample": "image",
        "flip_per": "pair",  # its samples are single images
        "label": "KTO",
    },
    "sft": {"objective": "sft", "label": "SFT", "steps": 1600, "ema_decay": 0.9999},
}


def _built(tables: Any) -> dict[str, TrainingConfig]:
    """The trainings from their tables; what one does not say, the one that it is `like` does."""
    if not isinstance(tables, Mapping):
        raise InputError(
            f"train={tables!r}: the trainings of a run are listed in 'trainings' now; [train.NAME] "
            "holds the settings of one training"
        )
    tables = {name: _with_objective(name, table) for name, table in tables.items()}
    found: dict[str, TrainingConfig] = {}
    for name, table in tables.items():
        if isinstance(table, TrainingConfig):
            found[name] = table
            continue
        if not isinstance(table, Mapping):
            raise InputError(f"train.{name}={table!r} is a value, not a table of settings")
        if not re.fullmatch(r"[a-z0-9][\w-]*", name) or name in RESERVED or is_start(name):
            raise InputError(
                f"train.{name}: the name becomes a folder of the run: use letters, digits, '_' and "
                f"'-', and none of {', '.join(sorted(RESERVED))}"
            )
        made = _training(name, _resolved(name, tables))
        # What the table itself says is written again, also where it equals what it is like.
        found[name] = type(made).model_construct({*table}, **dict(made))
    return found


def _resolved(name: str, tables: Mapping[str, Any], below: tuple[str, ...] = ()) -> dict[str, Any]:
    """A table over the one that it is like."""
    table = dict(tables[name])
    like = table.get("like", "")
    if not like:
        return table
    if like not in tables or like in (name, *below):
        raise InputError(f"train.{name}.like={like!r} is not another training")
    of_other = _resolved(like, tables, (*below, name))
    inherited = {key: value for key, value in of_other.items() if key not in ("label", "like")}
    return dict(TABLES.layered(inherited, table))


def by_objective(names: Any, tables: Any) -> Any:
    """The tables, with one for each name that has none and is an objective's: its defaults.

    Args:
        names: the trainings that are asked for, as they were given.
        tables: those there are, as they were given.
    """
    if not isinstance(names, Sequence) or not isinstance(tables, Mapping):
        return tables  # told where they are read
    wanted = [name for name in names if isinstance(name, str) and name in OBJECTIVES]
    return {**tables, **{name: {} for name in wanted if name not in tables}}


def _with_objective(name: str, table: Any) -> Any:
    """A table that names no objective is of the one that it is called as, where there is one."""
    told = not isinstance(table, Mapping) or {*table} & {"objective", "like"}
    return table if told or name not in OBJECTIVES else {"objective": name, **table}


def _training(name: str, values: Mapping[str, Any]) -> TrainingConfig:
    if "objective" not in values:
        raise InputError(
            f"train.{name}.objective is required: one of {', '.join(OBJECTIVES)} (or give "
            f"train.{name}.like=NAME)"
        )
    chosen = values["objective"]
    kind = OBJECTIVES.get(chosen) if isinstance(chosen, str) else None
    if kind is None:
        raise InputError(
            f"train.{name}.objective={values['objective']!r}: use {', '.join(OBJECTIVES)}"
        )
    for key in values:
        if key in kind.model_fields:
            continue
        if owners := [of for of, other in OBJECTIVES.items() if key in other.model_fields]:
            raise InputError(
                f"train.{name}.{key} is a setting of the objective {', '.join(owners)}, and "
                f"train.{name}.objective={values['objective']}"
            )
    return build(kind, values, prefix=f"train.{name}.")


def _dumped(trainings: Mapping[str, TrainingConfig]) -> dict[str, dict[str, Any]]:
    """Tables that `_built` reads back to the same: what another training says is left to it."""
    whole = {name: training.model_dump() for name, training in trainings.items()}
    return {
        name: {
            key: value
            for key, value in table.items()
            if not table["like"]
            or key in trainings[name].model_fields_set
            or value != whole[table["like"]].get(key)
        }
        for name, table in whole.items()
    }


TABLES = Tables("objective", lambda: OBJECTIVES)
Trainings = Annotated[
    dict[str, SerializeAsAny[TrainingConfig]],
    BeforeValidator(_built),
    PlainSerializer(_dumped),
    TABLES,
]


def in_order(
    names: Sequence[str], trainings: Mapping[str, TrainingConfig]
) -> dict[str, TrainingConfig]:
    """The trainings of a run with those that they start from, each after its start.

    Args:
        names: those that are asked for; among equals their order is kept.
        trainings: all that there are settings for.

    Returns:
        Settings by name, with `@NAME` as a start and an empty `draws` resolved.

    Raises:
        InputError: a name is listed twice or unknown, or a training starts from nothing known.
    """
    found: dict[str, TrainingConfig] = {}

    def add(name: str, on_the_way: tuple[str, ...]) -> None:
        training = trainings[name]
        start = _start_of(name, trainings)
        if start in on_the_way:
            raise InputError(f"train.{name}.start={training.start}: it would start from itself")
        if start in trainings and start not in found:
            add(start, (*on_the_way, start))
        if start not in (BASE, *trainings) and not _may_be_weights(start):
            raise InputError(
                f"train.{name}.start={start!r} is neither base, nor one of {', '.join(trainings)}, "
                "nor a folder, file or hub id (OWNER/REPO) with LoRA weights"
            )
        draws = training.draws or name
        found[name] = training.model_copy(update={"start": start, "draws": draws})

    for name in names:
        if name not in trainings:
            known = list(dict.fromkeys([*trainings, *OBJECTIVES]))
            near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0))
            raise InputError(
                f"trainings={list(names)}: no training or objective {name}; the nearest are {near} "
                "(trainings have a table [train.NAME], of an objective the defaults are taken)"
            )
        if names.count(name) > 1:
            raise InputError(f"trainings={list(names)}: {name} is listed twice")
        if name not in found:
            add(name, (name,))
    return found


def _start_of(name: str, trainings: Mapping[str, TrainingConfig]) -> str:
    """Where a training starts; "@NAME" is where that one does."""
    seen, start = [name], trainings[name].start
    while start.startswith(WHERE):
        other = start.removeprefix(WHERE)
        if other not in trainings or other in seen:
            raise InputError(f"train.{name}.start={trainings[name].start}: no such training")
        seen.append(other)
        start = trainings[other].start
    return start


def _may_be_weights(start: str) -> bool:
    return "/" in start or Path(start).expanduser().exists()


def weights(trainings: Mapping[str, TrainingConfig]) -> dict[str, tuple[str, str]]:
    """LoRA weights from elsewhere that trainings start from.

    Returns:
        Name in the tables (`start`, `start_2`, ...) to (reference, key of the setting).
    """
    keys: dict[str, str] = {}
    for name, training in trainings.items():
        if is_weights(training.start, trainings):
            keys.setdefault(training.start, f"train.{name}.start")
    return {
        "start" if number == 1 else f"start_{number}": (ref, key)
        for number, (ref, key) in enumerate(keys.items(), 1)
    }


def is_start(model: str) -> bool:
    """Whether a model's name is that of weights from elsewhere, as `weights` gives them."""
    return re.fullmatch(r"start(_\d+)?", model) is not None


def is_weights(start: str, trainings: Iterable[str]) -> bool:
    """Whether a start names LoRA weights from elsewhere."""
    return start not in (BASE, *trainings)


def lineage(name: str, trainings: Mapping[str, TrainingConfig]) -> list[str]:
    """A training and those that it continues, the first of them first."""
    chain = [name]
    while (start := trainings[chain[0]].start) in trainings:
        chain.insert(0, start)
    return chain


def final(trainings: Mapping[str, TrainingConfig]) -> str:
    """The training that the run is about: with most trainings behind it, of equals the last.

    Empty where nothing is trained.
    """
    return max(reversed([*trainings]), key=lambda name: len(lineage(name, trainings)), default="")


def label(name: str, trainings: Mapping[str, TrainingConfig]) -> str:
    """A result's name for people: all trainings that made it, as `stage 1 + stage 2`."""
    return " + ".join(trainings[each].label or each for each in lineage(name, trainings))


def labels(trainings: Mapping[str, TrainingConfig]) -> dict[str, str]:
    """Names for people by name, in the order of the tables: what has more behind it comes later.

    Of the base, of weights from elsewhere and of the trainings.
    """
    starts = {name: name.replace("_", " ") for name in weights(trainings)}
    shortest_first = sorted(trainings, key=lambda name: len(lineage(name, trainings)))
    return {BASE: BASE, **starts, **{name: label(name, trainings) for name in shortest_first}}

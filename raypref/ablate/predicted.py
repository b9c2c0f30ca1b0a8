"""GPU hours that the rows of a table would take on one H100: predicted, without any data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from raypref.ablate.plan import AblateConfig, PlannedRow
from raypref.align import plan as align_plan
from raypref.core.config import flatten
from raypref.evaluate.generate import BASE

# Sections that change no training, and others that change no twin.
NOT_OF_TRAININGS = frozenset(
    {"ablate", "evaluate", "judge", "metrics", "model", "rewards", "run", "storage", "stream"}
    | {"table", "tracking", "trainings"}
)
NOT_OF_TWINS = NOT_OF_TRAININGS | {"base", "lora", "cache", "train", "training_seed", "select"}


class Hours(NamedTuple):
    """GPU hours by what they are for."""

    pairs: float
    trainings: float
    images: float

    @property
    def all(self) -> float:
        """Their sum."""
        return sum(self)


def predicted_hours(
    rows: Iterable[PlannedRow], facts: Mapping[str, Any], *, prompts: Mapping[str, int]
) -> Hours:
    """What rows take together; what they share counts once.

    Args:
        rows: with settings; the files that these name need not be there.
        facts: `paper.toml`: seconds per unit and the paper's photographs.
        prompts: number of prompts of each file that `evaluate.prompts` may name.
    """
    pairs: dict[str, float] = {}
    trainings: dict[str, float] = {}
    images: dict[str, float] = {}
    for row in rows:
        if row.config is None:
            continue
        c, rates = row.config, facts["h100"][row.config.base.family]
        trained = align_plan.in_order(c.trainings, c.train)
        model = row.row.model or align_plan.final(trained)
        chain = align_plan.lineage(model, trained) if model in trained else []
        if chain or c.metrics.distance:
            twins = facts["photographs"]["all"] * rates["score"] + _tried(c, facts) * rates["twin"]
            own = _settings(c, NOT_OF_TWINS)
            pairs[own] = max(pairs.get(own, 0.0), twins)
        for place, name in enumerate(chain):
            own, training = _settings(c, NOT_OF_TRAININGS, chain[: place + 1]), c.train[name]
            trainings[own] = training.steps * training.batch * rates[training.objective]
        shown = None if align_plan.is_start(model) else chain  # what a start is, trainings say
        number = sum(prompts.get(path, 0) for path in c.evaluate.files)
        evaluated = _settings(c, NOT_OF_TRAININGS - {"evaluate"}, shown)
        if model == BASE:
            evaluated = json.dumps([flatten(c.base), flatten(c.evaluate)], default=str)
        images[evaluated] = number * len(c.evaluate.seeds) * rates["image"]
    return Hours(*(sum(found.values()) / 3600 for found in (pairs, trainings, images)))


def _settings(
    config: AblateConfig, left_out: Collection[str], trainings: Sequence[str] | None = None
) -> str:
    """Settings as text, without some sections; of trainings those named, or all."""
    kept = {
        key: value
        for key, value in flatten(config).items()
        if (parts := key.split("."))[0] not in left_out
        and (parts[0] != "train" or trainings is None or parts[1] in trainings)
    }
    return json.dumps(kept, sort_keys=True, default=str)


def _tried(config: AblateConfig, facts: Mapping[str, Any]) -> float:
    """About how many twins are painted until enough pairs have passed."""
    counts = facts["photographs"]
    there = counts["colorful"] if config.color.enabled else counts["all"]
    wanted = config.select.top_k
    if not wanted or config.curate.exhaustive:
        return float(there)
    share = counts["passing"] / counts["colorful"] if config.select.negligible else 1.0
    return min(float(there), wanted / share)

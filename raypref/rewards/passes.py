"""Which measures of stored images share a pass over them, and the transforms of one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raypref.core.rows import Transform
from raypref.engine.worker import needs_of
from raypref.rewards.base import Decode, Embed, Score
from raypref.rewards.config import RewardConfig


class Measure(NamedTuple):
    """Something that is said of every stored image."""

    stage: Transform
    settings: Mapping[str, object]  # what decides its values
    scores: Sequence[str]  # those of the columns it writes that are metrics
    runtime_env: Mapping[str, Any] | None = None  # an environment of its own for the workers

    @property
    def columns(self) -> list[str]:
        """What it writes."""
        return list(self.stage.writes.names)


def passes(chosen: Mapping[str, Measure]) -> list[dict[str, Measure]]:
    """Which measures look at the images together: their models fit on one worker's GPU.

    Models of billions of weights, and those with an environment of their own, are alone in memory.

    Args:
        chosen: measures by name, in order.
    """
    found: list[dict[str, Measure]] = []
    for name, measure in chosen.items():
        for together in found:
            stages = [m.stage for m in (*together.values(), measure)]
            if not any(map(_alone, (*together.values(), measure))) and _fit(stages):
                together[name] = measure
                break
        else:
            found.append({name: measure})
    return found


def _alone(measure: Measure) -> bool:
    config = getattr(measure.stage, "config", None)
    return measure.runtime_env is not None or (isinstance(config, RewardConfig) and config.large)


def _fit(stages: Sequence[Transform]) -> bool:
    """Whether the shares of a GPU that models hold are no more than one."""
    return sum(need.num_gpus for need in needs_of(stages)) <= 1


def in_one_pass(
    together: Mapping[str, Measure], *, column: str
) -> tuple[list[Transform], dict[str, list[Transform]]]:
    """The stages of one pass: those of every image, then those of each measure.

    An image is decoded once. Where its embedding is wanted too, a reward of the same model scores
    that: the image goes through the model once.

    Args:
        together: measures by name.
        column: holds the image, as PNG bytes.
    """
    common: list[Transform] = [Decode(column)]
    own: dict[str, list[Transform]] = {name: [measure.stage] for name, measure in together.items()}
    for name, measure in together.items():
        if isinstance(measure.stage, Embed):
            common.append(measure.stage)
            own[name] = []
            for other, (stage, *_) in together.items():
                if isinstance(stage, Score) and stage.config == measure.stage.config:
                    own[other] = [
                        Score(
                            stage.config,
                            columns=stage.columns,
                            prompt=stage.prompt,
                            embedded=True,
                        )
                    ]
    return common, own

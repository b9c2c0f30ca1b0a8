"""What can be said of a stored image, each in a pass of its own: rewards, pixels, embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import field_validator

from raypref.config import Location, Section, setting
from raypref.evaluate.accuracy import PromptAccuracy
from raypref.evaluate.dpg import AskQuestions, read_questions
from raypref.evaluate.metrics import PixelMetrics
from raypref.rewards.base import Embed, Score
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.rewards import (
    RewardsConfig,
    embedder,
    embedder_names,
    reward,
    reward_names,
    runtime_env,
)
from raypref.rows import Stage


class MetricsConfig(Section):
    """What is measured, besides texture detail and colorfulness, which need no model."""

    rewards: tuple[str, ...] = setting(
        ("pickscore",),
        f"rewards that score the images: {', '.join(reward_names())}",
        affects_result=False,
    )
    distance: bool = setting(
        True, "CMMD and FID to the photographs of the pairs", affects_result=False
    )
    embedder: str = setting(
        "pickscore",
        f"whose image embeddings the distances compare: {', '.join(embedder_names())}",
        affects_result=False,
    )
    critic: Location = setting(
        "", "classifier that judges prompt accuracy; there is one for the tiny world only"
    )

    dpg_questions: Location = setting(
        "",
        "DPG-Bench's question table (dpg_bench.csv), answered by the model of rewards.vqascore",
        affects_result=False,
    )

    @field_validator("rewards")
    @classmethod
    def _known(cls, chosen: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(chosen) & set(reward_names())) < len(chosen):
            raise ValueError(f"each is named once and is one of: {', '.join(reward_names())}")
        return chosen

    @field_validator("embedder")
    @classmethod
    def _embeds(cls, name: str) -> str:
        if name not in embedder_names():
            raise ValueError(f"one of: {', '.join(embedder_names())}")
        return name

    @property
    def embedding(self) -> str:
        """Name of the measure that embeds."""
        return f"embedding_{self.embedder}"


class Measure(NamedTuple):
    """One pass over stored images."""

    stage: Stage
    settings: Mapping[str, object]  # what decides its values
    scores: Sequence[str]  # those of the columns it writes that are metrics
    runtime_env: Mapping[str, Any] | None = None  # an environment of its own for the workers

    @property
    def columns(self) -> list[str]:
        """What it writes."""
        return list(self.stage.writes.names)


def measures(
    metrics: MetricsConfig, pickscore: PickScoreConfig, others: RewardsConfig
) -> dict[str, Measure]:
    """All that is measured, by the name of its ledgers.

    Args:
        metrics: what is chosen.
        pickscore: settings of PickScore.
        others: settings of the other rewards.
    """
    found = {}
    for name in metrics.rewards:
        config = reward(name, pickscore, others)
        stage = Score(config, columns={"image": name}, prompt="prompt")
        found[name] = Measure(stage, {name: config}, [name], runtime_env(config))
    if metrics.dpg_questions:
        asked = read_questions(metrics.dpg_questions)
        ask = AskQuestions(others.vqascore, asked, column="image", prompt="prompt")
        data = Path(metrics.dpg_questions).expanduser().read_bytes()
        settings = {"vqascore": others.vqascore, "questions": hashlib.sha256(data).hexdigest()[:16]}
        found[ask.name] = Measure(ask, settings, ["dpg"])
    found["pixels"] = Measure(PixelMetrics(), {}, PixelMetrics.writes.names)
    if metrics.critic:
        accuracy = PromptAccuracy(metrics.critic)
        found[accuracy.name] = Measure(accuracy, {"critic": metrics.critic}, [accuracy.name])
    if metrics.distance:
        model = embedder(metrics.embedder, pickscore, others)
        embed = Embed(model, column="image")
        found[metrics.embedding] = Measure(embed, {"embedder": model}, [])
    return found

"""What can be said of a stored image: rewards, pixels, embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from raypref.core.config import InputError, Location, Section, setting
from raypref.core.rows import Transform
from raypref.core.schemes import scheme_of
from raypref.evaluate.dpg import AskQuestions, read_questions
from raypref.evaluate.metrics import LookMetrics, PixelMetrics
from raypref.rewards.base import Embed, Score
from raypref.rewards.config import RewardConfig
from raypref.rewards.passes import Measure
from raypref.rewards.pickscore import PickScoreConfig
from raypref.rewards.registry import embedder_names, reward_names
from raypref.rewards.rewards import reward
from raypref.rewards.vqascore import VQAScoreConfig


class MetricsConfig(Section):
    """What is measured, besides texture detail and colorfulness, which need no model."""

    rewards: tuple[str, ...] = setting(
        ("pickscore",),
        f"rewards that score the images: {', '.join(reward_names())}, names of rewards.heads",
        affects_result=False,
    )
    distance: bool = setting(
        True, "CMMD and FID to the chosen images of the pairs", affects_result=False
    )
    embedder: str = setting(
        "pickscore",
        f"whose image embeddings the distances compare: {', '.join(embedder_names())}",
        affects_result=False,
    )
    cmmd_estimator: Literal["unbiased", "biased"] = setting(
        "unbiased",
        "CMMD without the pairs of an image with itself and with others of its prompt (unbiased), "
        "or with all, as published (biased: larger, the more the fewer images); each is a metric "
        "of its own, cmmd and cmmd_biased",
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

    rubric: Location = setting(
        "",
        "of painted holes: file of answers to the requests that raypref rubric writes",
        affects_result=False,
    )

    looks: bool = setting(
        False,
        "brightness, contrast, saturation and composition too, of holes also within the hole: what "
        "a training changed besides quality",
        affects_result=False,
    )

    @field_validator("embedder")
    @classmethod
    def _embeds(cls, name: str) -> str:
        if name not in embedder_names():
            raise ValueError(f"one of: {', '.join(embedder_names())}")
        return name

    @property
    def distances(self) -> tuple[str, str]:
        """Names of the metrics that compare with photographs: CMMD, and FID."""
        return ("cmmd_biased" if self.cmmd_estimator == "biased" else "cmmd"), "fid"

    @property
    def embedding(self) -> str:
        """Name of the measure that embeds."""
        return f"embedding_{self.embedder}"


def measures(
    metrics: MetricsConfig, pickscore: PickScoreConfig, others: Mapping[str, RewardConfig]
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
        found[name] = Measure(stage, {name: config}, [name], config.runtime_env)
    if metrics.dpg_questions:
        asked = read_questions(metrics.dpg_questions)
        vqascore = others["vqascore"]
        assert isinstance(vqascore, VQAScoreConfig)
        ask = AskQuestions(vqascore, asked, column="image", prompt="prompt")
        data = Path(metrics.dpg_questions).expanduser().read_bytes()
        settings = {"vqascore": vqascore, "questions": hashlib.sha256(data).hexdigest()[:16]}
        found[ask.name] = Measure(ask, settings, ["dpg"])
    found["pixels"] = Measure(PixelMetrics(), {}, PixelMetrics.writes.names)
    if metrics.looks:
        found["looks"] = Measure(LookMetrics(), {}, LookMetrics.writes.names)
    if metrics.critic:
        accuracy = _prompt_accuracy(metrics.critic)
        found[accuracy.name] = Measure(accuracy, {"critic": metrics.critic}, [accuracy.name])
    if metrics.distance:
        model = reward(metrics.embedder, pickscore, others)
        embed = Embed(model, column="image")
        found[metrics.embedding] = Measure(embed, {"embedder": model}, [])
    return found


def _prompt_accuracy(critic: str) -> Transform:
    embedded = scheme_of(critic)
    if embedded is None:
        raise InputError(
            f"metrics.critic={critic}: a classifier is named with its scheme, as "
            "tiny:critic.safetensors"
        )
    scheme, _ = embedded
    transform: Transform = scheme.prompt_accuracy(critic)
    return transform

"""Trainings by every objective on the policy's own images, beside a plain implementation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_inpainting import family_of
from plain_online import ONLINE, PlainOnline
from test_online import judge
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import BASES, LORAS, STEPS, denoiser, pairs, photographs, training

from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import OnlineConfig
from raypref.align.residuals import LEARNER
from raypref.align.watch import StepMetrics
from raypref.models import adapters
from raypref.models.lora_config import LoraConfig

LINEAR = ("dgpo", "crd")  # `loss` is their coefficient times what was measured


def brightness(pixels: np.ndarray) -> float:
    return float(pixels.mean())


def compare(
    family: str,
    stage: OnlineConfig,
    folder: Path,
    *,
    kind: type[PlainOnline] = PlainOnline,
    lora: LoraConfig | None = None,
) -> tuple[list[StepMetrics], PlainOnline]:
    """Train both ways: gradients, weights and losses of every step are equal to 1e-6."""
    network, gradients, weights = denoiser(family), [], []
    config = lora or LORAS[family]

    def note_gradient(optimizer: torch.optim.Optimizer, *_: object) -> None:
        (vector,) = optimizer.param_groups[0]["params"]
        parts = adapters.state_of(network.module, vector.grad)
        gradients.append(torch.cat([part.flatten() for part in parts.values()]))

    hook = register_optimizer_step_pre_hook(note_gradient)

    def note(metrics: StepMetrics) -> None:
        own = adapters.matrices(network.module, LEARNER)
        weights.append(torch.cat([p.detach().flatten() for p in own]))

    texts = tuple(text for text, _ in photographs(10))
    common: dict[str, Any] = {"name": "stage", "draws": "test-online", "seed": 0}
    try:
        history = train(
            *(network, replace(pairs(family=family), texts=texts), stage, config),
            **{**common, "folder": str(folder), "start": None, "group": Alone()},
            on_step=note,
            judge=judge(family),
        )
    finally:
        hook.remove()
    plain = kind(
        family_of(family, BASES[family].model),
        [(text, photo, photo) for text, photo in photographs(10)],
        stage,
        targets=config.targets,
        rank=config.rank,
        alpha=config.alpha,
        seed=0,
        name="test-online",
        judge=brightness,
    )
    for i in range(stage.steps):
        plain.step()
        if stage.objective not in LINEAR:
            assert history[i]["loss"] == pytest.approx(plain.losses[i], abs=1e-6)
        rewards = [reward for _, _, own in plain.images for reward in own]
        assert history[i]["reward"] == pytest.approx(np.mean(rewards), abs=1e-6)
        assert history[i]["grad_norm"] == pytest.approx(plain.norms[i], abs=1e-6)
        for ours, theirs in ((gradients[i], plain.clipped[i]), (weights[i], plain.weights[i])):
            other = torch.cat([part.flatten() for part in theirs])
            assert (ours - other).abs().max() < 1e-6, i
    assert (weights[-1] - weights[0]).abs().max() > 1e-4
    return history, plain


@pytest.mark.parametrize("family", STEPS)
@pytest.mark.parametrize("name", ONLINE)
def test_online_steps_equal_a_plain_implementation(name: str, family: str, tmp_path: Path) -> None:
    common = {"steps": STEPS[family], "group": 2, "rollout_steps": 2, "micro_batch": 4, "lr": 1e-3}
    one = training(name, **{**common, **ONLINE[name].settings}, batch=12)
    assert isinstance(one, OnlineConfig)
    stage = one.model_copy(update={"batch": one.samples_per_prompt})
    history, plain = compare(family, stage, tmp_path)
    if name == "crd":
        missed = [row["missed"] + stage.kl * row["kl"] for row in history]
        assert missed == pytest.approx(plain.losses, abs=1e-6)
    if "clip_range" in ONLINE[name].settings:
        assert 0 < np.mean([row["clipped"] for row in history]) < 1


def test_every_online_objective_on_images_has_a_plain_one() -> None:
    from raypref.align.objectives.decoupled import DecoupledConfig

    assert set(ONLINE) == {n for n, kind in OBJECTIVES.items() if issubclass(kind, DecoupledConfig)}

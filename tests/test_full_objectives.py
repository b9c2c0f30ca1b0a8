"""Every objective and every family with all weights trained; the online ones beside a plain one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from plain_full import PlainFull
from plain_online import ONLINE, PlainOnline
from test_backprop import judge
from test_online_trained import compare
from training import BASES, CPU, denoiser, facts_of, pairs, photographs, training

from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import OnlineConfig, RewardedConfig
from raypref.align.residuals import LEARNER
from raypref.models import adapters
from raypref.models.families.registry import FAMILIES
from raypref.models.families.registry import family as family_of
from raypref.models.lora_config import LoraConfig

ALL = LoraConfig(rank=0)


@dataclass
class PlainFullOnline(PlainFull, PlainOnline):
    """All weights, trained on the policy's own images."""


def settings_of(name: str) -> dict[str, object]:
    """Two small steps."""
    kind = OBJECTIVES[name]
    own: dict[str, object] = {"steps": 2, "batch": 2, "micro_batch": 2, "lr": 1e-4}
    if "rollout_steps" in kind.model_fields:
        own["rollout_steps"] = 3
    if issubclass(kind, RewardedConfig):
        own |= {"rewards": {"pickscore": 1.0}, "guidance": 1.0}
    if "group" in kind.model_fields and issubclass(kind, OnlineConfig):
        own["group"] = 2
    small = {"timesteps": 1, "window_size": 2, "steps_with_gradient": 2}
    own |= {key: value for key, value in small.items() if key in kind.model_fields}
    return own


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_trains_all_weights(name: str, tmp_path: Path) -> None:
    stage = training(name, **settings_of(name))
    if isinstance(stage, OnlineConfig):
        stage = stage.model_copy(update={"batch": stage.samples_per_prompt})
    made, data = denoiser(), pairs()
    texts = tuple(caption for caption, _ in photographs(len(data)))
    history = train(
        made,
        replace(data, texts=texts, facts=facts_of(stage)),
        stage,
        ALL,
        name="stage",
        draws="test-full",
        seed=0,
        folder=str(tmp_path),
        start=None,
        group=Alone(),
        on_step=lambda metrics: None,
        judge=judge("sd15"),
    )
    assert len(history) == 2 and all(np.isfinite(row["loss"]) for row in history)
    assert max(row["weights_norm"] for row in history) > 0
    assert (tmp_path / "unet" / "config.json").is_file()


@pytest.mark.parametrize("name", ["nft", "online_dpo"])
def test_online_steps_equal_a_plain_implementation(name: str, tmp_path: Path) -> None:
    common = {"steps": 20, "group": 2, "rollout_steps": 2, "micro_batch": 4, "lr": 1e-4}
    one = training(name, **{**common, **ONLINE[name].settings}, batch=12)
    assert isinstance(one, OnlineConfig)
    stage = one.model_copy(update={"batch": one.samples_per_prompt, "policy_keep": 0.0})
    compare("sd15", stage, tmp_path, kind=PlainFullOnline, lora=ALL)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_and_opens_in_diffusers(family: str, tmp_path: Path) -> None:
    stage = training("dpo", steps=2, batch=1, micro_batch=1, lr=1e-4, beta=100.0)
    own, made = family_of(family), denoiser(family)
    before = {name: value.clone() for name, value in made.module.state_dict().items()}
    history = train(
        *(made, pairs(family=family), stage, ALL),
        name="stage",
        draws="test-full",
        seed=0,
        folder=str(tmp_path),
        start=None,
        group=Alone(),
        on_step=lambda metrics: None,
        hole=own.hole,
    )
    assert history[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-9)
    kind = getattr(diffusers, own.network)
    saved = kind.from_pretrained(tmp_path, subfolder=own.component, torch_dtype=torch.float64)
    trained = adapters.state(made.module, LEARNER)
    after = saved.state_dict()
    assert after.keys() == before.keys()
    parameters = {name for name, _ in made.module.named_parameters()}
    for name, value in after.items():
        expected = trained[name] if name in parameters else before[name]
        assert torch.equal(value, expected), name
    moved = [not torch.equal(after[name], before[name]) for name in parameters]
    assert sum(moved) > 0.9 * len(moved)
    # In its place the network predicts what the learner does.
    data = pairs(family=family)
    prompts = data.prompts([0], [False], [False]).to(CPU, torch.float64)
    x = torch.randn((1, *data.latent_shape), generator=torch.Generator().manual_seed(2)).double()
    times = made.training_timesteps(data.latent_shape)[500:501]
    adapters.activate(made.module, LEARNER)
    other = denoiser(family)
    other.module.load_state_dict(after)
    with torch.no_grad():
        ours, theirs = (each.predict(x, times, prompts) for each in (made, other))
    assert (ours - theirs).abs().max() < 1e-12
    assert BASES[family].dtype == "float64"

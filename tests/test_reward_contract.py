"""What holds for every reward of the registry: a new one gets these tests for nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from raypref.core.config import InputError, fields_of, flatten, load, results_of, to_toml
from raypref.evaluate import labels
from raypref.rewards.base import DifferentiableReward, Embedder, Reward
from raypref.rewards.config import RewardConfig
from raypref.rewards.registry import REWARDS, embedder_names, reward_names
from raypref.rewards.rewards import reward, rewards_of
from raypref.run.config import RunConfig

every = pytest.mark.parametrize("name", REWARDS)


def key(name: str) -> str:
    """Where a reward's settings are; curation uses PickScore too."""
    return name if name == "pickscore" else f"rewards.{name}"


@every
def test_it_says_how_its_scores_are_shown(name: str) -> None:
    kind = REWARDS[name]
    assert kind.label and kind.label == kind.label.strip() and kind.digits >= 0
    shown = [other.label for other in (*REWARDS.values(), *labels.OTHERS.values())]
    assert shown.count(kind.label) == 1, "two columns of a table would read the same"
    assert kind.scores or kind.embeds
    if kind.scores:
        arrow = "↓" if kind.lower_is_better else "↑"
        assert labels.heading(name) == f"{kind.label} {arrow}"
        assert labels.score_text(name, 1.23456) == f"{1.23456:.{kind.digits}f}"
        assert labels.spelt_out(name) == kind.spelt_out and name in labels.metric_names()


@every
def test_a_missing_model_is_an_error_that_names_the_key(name: str, tmp_path: Path) -> None:
    kind = REWARDS[name]
    if "model" not in kind.model_fields:
        pytest.skip("it has no weights")
    allowed = {"allow_code": True} if "allow_code" in kind.model_fields else {}
    settings = kind.model_validate({"model": str(tmp_path / "nowhere"), **allowed})
    with pytest.raises(InputError, match=rf"^{re.escape(key(name))}\.\w+: "):
        settings.check()


@every
def test_its_model_has_the_phases(name: str) -> None:
    """`prepare` and `compute` of its own; where it embeds, `pixels` and `features` too."""
    kind = REWARDS[name]
    model = get_type_hints(kind.load)["return"]
    phases: dict[str, Any] = {}
    if kind.scores:
        phases |= {"prepare": Reward, "compute": Reward}
    if kind.embeds:
        phases |= {"pixels": Embedder, "features": Embedder}
    for phase, interface in phases.items():
        assert getattr(model, phase) is not getattr(interface, phase)
    if kind.scores and kind.embeds:
        assert callable(model.tokens) and callable(model.score_embedded)
    if kind.differentiable:  # its value and its gradient: test_score_pixels.py
        assert DifferentiableReward in model.__mro__
        assert model.score_pixels is not DifferentiableReward.score_pixels


@every
def test_its_settings_have_defaults_and_say_what_they_do(name: str) -> None:
    kind = REWARDS[name]
    settings = kind()
    assert settings.resources.batch >= 1
    assert next(reversed(kind.model_fields)) == "resources"
    for dotted, field in fields_of(kind):
        assert field.description, dotted
    decide = results_of({name: settings})
    assert {f"{name}.model"} & {f"{name}.{field}" for field in kind.model_fields} <= set(decide)
    assert not any(dotted.startswith(f"{name}.resources") for dotted in decide)


def test_a_name_is_that_of_one_metric() -> None:
    assert not set(REWARDS) & set(labels.OTHERS)
    assert set(reward_names()) | set(embedder_names()) == set(REWARDS)


def test_a_reward_of_a_run_is_that_of_its_section() -> None:
    settings = load(RunConfig, "tiny", ["rewards.clipscore.variant=cosine"])
    for name, kind in REWARDS.items():
        assert type(reward(name, settings.pickscore, settings.rewards)) is kind
    assert "pickscore" not in settings.rewards
    assert flatten(settings)["rewards.clipscore.variant"] == "cosine"
    changed = {"variant": "cosine", "model": "tiny:pickscore"}  # the preset's model is kept
    assert settings.rewards == rewards_of({**settings.rewards, "clipscore": changed})


def test_settings_of_rewards_are_read_back_from_what_is_written(tmp_path: Path) -> None:
    settings = load(RunConfig, "tiny", ["rewards.hpsv2.resources.batch=3"])
    (tmp_path / "run.toml").write_text(to_toml(settings))
    again = load(RunConfig, str(tmp_path / "run.toml"))
    assert flatten(again) == flatten(settings)
    assert again.rewards["hpsv2"].resources.batch == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rewards.clipscor.model=x", "unknown key 'rewards.clipscor'; .* 'clipscore'"),
        ("rewards.clipscore.modl=x", "unknown key 'rewards.clipscore.modl'; .*clipscore.model'"),
        ("rewards.clipscore.variant=x", r"rewards\.clipscore\.variant='x': "),
        ("rewards.clipscore=3", r"rewards\.clipscore=3 is a value"),
        ("rewards=3", "rewards=3 is a value"),
        ("rewards.pickscore.model=x", "unknown key 'rewards.pickscore'"),
    ],
)
def test_a_wrong_setting_names_the_key(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(RunConfig, "tiny", [given])


def test_the_settings_of_a_reward_are_one_kind() -> None:
    assert all(issubclass(kind, RewardConfig) for kind in REWARDS.values())
    assert len(set(REWARDS.values())) == len(REWARDS)

"""Linear heads by name: scores by hand, settings there and back, names that are taken."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from reward_states import tiny_world
from safetensors.torch import save_file

from raypref.core.config import InputError, flatten, load, load_sections, results_of, to_toml
from raypref.evaluate import labels
from raypref.evaluate.measures import measures
from raypref.images.looks import LOOKS
from raypref.judge.job import JudgingConfig
from raypref.rewards.passes import passes
from raypref.rewards.rewards import reward, reward_section
from raypref.run.config import RunConfig
from raypref.run.memory_plan import predicted_gib

WEIGHT = torch.linspace(-8, 8, 64)[None]


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Two heads on the embedded CLIP: one, and its opposite on another level."""
    save_file({"weight": WEIGHT, "bias": torch.tensor([5.0])}, tmp_path / "up.safetensors")
    torch.save({"weight": -WEIGHT, "bias": torch.tensor([1.0])}, tmp_path / "down.pth")
    return [
        "rewards.heads.up.model=tiny:pickscore",
        f"rewards.heads.up.head={tmp_path / 'up.safetensors'}",
        "rewards.heads.down.model=tiny:pickscore",
        f"rewards.heads.down.head={tmp_path / 'down.pth'}",
    ]


def test_scores_are_those_of_the_head_on_the_unit_embedding(given: list[str]) -> None:
    settings = load(RunConfig, "tiny", [*given, "metrics.rewards=pickscore,up,down"])
    up, down = (reward(n, settings.pickscore, settings.rewards).load() for n in ("up", "down"))
    images, prompts = tiny_world(4)
    embedding_BD = settings.pickscore.load().embed(images)
    by_hand = embedding_BD.astype(np.float64) @ WEIGHT[0].double().numpy()
    np.testing.assert_allclose(up.score(images, prompts), by_hand + 5, atol=1e-5)
    np.testing.assert_allclose(down.score(images, prompts), 1 - by_hand, atol=1e-5)
    assert by_hand.std() > 1e-2
    assert up.clip is down.clip, "heads on one CLIP share it"


def test_it_is_a_measure_with_settings_and_a_ledger_of_its_own(given: list[str]) -> None:
    settings = load(RunConfig, "tiny", [*given, "metrics.rewards=up,pickscore,down"])
    found = measures(settings.metrics, settings.pickscore, settings.rewards)
    assert [*found][:3] == ["up", "pickscore", "down"]
    assert found["up"].columns == found["up"].scores == ["up"]
    decide = results_of(found["up"].settings)
    assert {"up.model", "up.head", "up.dtype"} == {*decide}
    assert {"up", "down"} <= {*passes(found)[0]}
    assert labels.heading("up") == "up ↑" and labels.score_text("up", 1.234) == "1.23"
    names = [reward_section(n) for n in ("up", "pickscore", "hpsv2")]
    assert names == ["rewards.heads.up", "pickscore", "rewards.hpsv2"]


def test_settings_are_read_back_and_changed_from_the_command_line(
    given: list[str], tmp_path: Path
) -> None:
    settings = load(RunConfig, "tiny", [*given, "metrics.rewards=up"])
    (tmp_path / "run.toml").write_text(to_toml(settings))
    again = load(RunConfig, str(tmp_path / "run.toml"))
    assert flatten(again) == flatten(settings) and again == settings
    more = ["rewards.heads.up.resources.batch=3", "judge.rewards=up,down"]
    changed = load(RunConfig, str(tmp_path / "run.toml"), more)
    assert flatten(changed)["rewards.heads.up.resources.batch"] == 3
    assert changed.rewards["heads.down"] == settings.rewards["heads.down"]
    part = load_sections(JudgingConfig, str(tmp_path / "run.toml"), more, of=RunConfig)
    assert part.rewards == changed.rewards and part.judge.rewards == ("up", "down")


def test_settings_without_heads_are_those_of_before() -> None:
    settings = load(RunConfig, "tiny", [])
    assert not [key for key in flatten(settings) if "heads" in key]
    assert "heads" not in to_toml(settings)


def test_errors_name_the_head_in_workers_too(given: list[str], tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1, 9), "bias": torch.zeros(1)}, tmp_path / "nine.pth")
    wrong = [*given, f"rewards.heads.up.head={tmp_path / 'nine.pth'}"]
    head = load(RunConfig, "tiny", wrong).rewards["heads.up"]
    for config in (head, pickle.loads(pickle.dumps(head)), head.model_copy()):
        with pytest.raises(InputError, match=r"^rewards\.heads\.up\.head: 'nine.pth' reads .* 9"):
            config.check()
    gone = load(RunConfig, "tiny", [*given, "rewards.heads.up.head=gone.pth"]).rewards["heads.up"]
    with pytest.raises(InputError, match=r"^rewards\.heads\.up\.head: .*'gone.pth' is missing"):
        gone.check()
    gone = load(RunConfig, "tiny", [*given, "rewards.heads.up.model=/gone"]).rewards["heads.up"]
    with pytest.raises(InputError, match=r"^rewards\.heads\.up\.model: "):
        gone.check()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rewards.heads.up.hed=x", "unknown key 'rewards.heads.up.hed'; .*heads.up.head'"),
        ("rewards.heads.up=3", "^rewards.heads.up=3 is a value"),
        ("rewards.heads=3", "^rewards.heads=3 is a value"),
        ("rewards.heads.new.model=x", "'rewards.heads.new.head' is required"),
        ("rewards.heads.hpsv2.head=x", "^rewards.heads.hpsv2: the name 'hpsv2' is taken"),
        ("rewards.heads.Aes.head=x", "^rewards.heads.Aes: the name 'Aes' is taken"),
        ("rewards.heads.ensemble.head=x", "'ensemble' is taken"),
        ("rewards.heads.cmmd.head=x", "^rewards.heads.cmmd: a metric has the name"),
        ("rewards.heads.2nd.head=x", "^rewards.heads.2nd: a name has letters"),
        ("metrics.rewards=pickscore,upp", "is one of: pickscore, .*, up, down;"),
        ("judge.rewards=up,up", "^judge.rewards=.*named once"),
    ],
)
def test_a_wrong_setting_is_named(given: list[str], wrong: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(RunConfig, "tiny", [*given, wrong])


@pytest.mark.parametrize("name", LOOKS)
def test_a_measured_property_is_no_name(name: str) -> None:
    with pytest.raises(InputError, match="taken"):
        load(RunConfig, "tiny", [f"rewards.heads.{name}.head=x"])


def test_its_memory_is_predicted(given: list[str]) -> None:
    on_gpu = [f"rewards.heads.{name}.resources.num_gpus=0.5" for name in ("up", "down")]
    settings = load(RunConfig, "tiny", [*given, *on_gpu, "metrics.rewards=up,down"])
    (step,) = (step for step in predicted_gib(settings) if "heads.up" in step)
    assert "heads.down" in step

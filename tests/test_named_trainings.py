"""A training without a table that is called as an objective: that objective, its defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from raypref import cli
from raypref.align.objectives.registry import OBJECTIVES
from raypref.core.config import InputError, fields_of, load, replaced, to_toml
from raypref.core.key_help import found
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run


@pytest.mark.parametrize("name", ["ipo", "mapo", "smpo"])
def test_an_objective_s_name_is_a_training_with_its_defaults(name: str, tmp_path: Path) -> None:
    words = [f"trainings={name}", f"storage={tmp_path}"]
    config = load(RunConfig, "tiny", words)
    assert config.train[name] == OBJECTIVES[name](objective=name)
    run = Run(config)
    assert list(run.trained) == [name] and run.labels[name] == name
    # What the run writes down is read back to the same, and changed like any other.
    (tmp_path / "config.toml").write_text(to_toml(config))
    again = load(RunConfig, str(tmp_path / "config.toml"))
    assert again.train[name] == config.train[name]
    assert Run(again).trained[name].fingerprint == run.trained[name].fingerprint
    assert replaced(config, {f"train.{name}.lr": 0.5}).train[name].lr == 0.5


def test_its_keys_are_set_without_a_word_on_the_objective() -> None:
    words = ["trainings=ipo,dpo", "train.ipo.steps=7", "train.mine.like=ipo", "train.mine.batch=3"]
    train = load(RunConfig, "tiny", words).train
    assert (train["ipo"].objective, train["ipo"].steps) == ("ipo", 7)
    assert (train["mine"].objective, train["mine"].steps, train["mine"].batch) == ("ipo", 7, 3)


def test_a_table_of_the_name_counts() -> None:
    table = load(RunConfig, "tiny", ["trainings=sft"]).train["sft"]
    assert table.steps == 80  # of the preset
    other = load(RunConfig, "tiny", ["trainings=ipo", "train.ipo.objective=dpo"]).train["ipo"]
    assert other.objective == "dpo"


def test_a_name_of_nothing_is_told_with_the_nearest() -> None:
    said = r"no training or objective linear_dop; the nearest are linear_dpo"
    with pytest.raises(InputError, match=said):
        _ = Run(load(RunConfig, "tiny", ["trainings=linear_dop"])).trained


def test_help_lists_the_keys_of_an_objective(capsys: pytest.CaptureFixture[str]) -> None:
    told = found(RunConfig, ["smpo"])
    keys = [text.split()[0] for text in told]
    assert keys == [key for key, _ in fields_of(OBJECTIVES["smpo"], "train.smpo.")]
    assert found(RunConfig, ["smpo.lr"])[0].startswith("train.smpo.lr  (number")
    assert cli.console(["run", "--help", "linear_dpo"]) == 0
    shown = capsys.readouterr().out
    assert "train.linear_dpo.steps  (integer, default 1000)" in shown
    assert "train.linear_dpo.rollout_steps" not in shown

"""Profiles: where they lie between files and the command line, and what the dry run says of it."""

from pathlib import Path
from typing import Any

import pytest

from raypref import cli
from raypref.ablate.plan import load_config, plan_row
from raypref.ablate.table import Row
from raypref.core.config import InputError, flatten, load, results_of, to_toml
from raypref.run.config import RunConfig
from raypref.run.words import find_run

PARENT = """
[select]
top_k = 10
min_gap = 0.1
[evaluate]
limit = 5
[profiles.released.select]
top_k = 20
min_gap = 0.2
[profiles.released.train.stage2]
caption_dropout = 0.0
[profiles.mine]
seed = 3
"""
CHILD = """
extends = "parent.toml"
[select]
min_gap = 0.3
[profiles.released.evaluate]
limit = 7
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory but for a file over `tiny`, and one over that."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parent.toml").write_text('extends = "tiny"\n' + PARENT)
    (tmp_path / "child.toml").write_text(CHILD)
    return tmp_path


def seen(source: str, *words: str) -> tuple[Any, ...]:
    """The settings that the files above play with."""
    c = load(RunConfig, source, words)
    dropout = c.train["stage2_alone"].caption_dropout  # like stage 2
    return c.profile, c.select.top_k, c.select.min_gap, c.evaluate.limit, dropout, c.seed


@pytest.mark.parametrize(
    ("source", "words", "expected"),
    [
        ("parent.toml", (), ("paper", 10, 0.1, 5, 0.2, 0)),
        ("parent.toml", ("profile=paper",), ("paper", 10, 0.1, 5, 0.2, 0)),
        ("parent.toml", ("profile=released",), ("released", 20, 0.2, 5, 0.0, 0)),
        ("parent.toml", ("profile=mine",), ("mine", 10, 0.1, 5, 0.2, 3)),
        # What the child says itself lies over what it inherits, and its own profile over that.
        ("child.toml", ("profile=released",), ("released", 20, 0.3, 7, 0.0, 0)),
        ("child.toml", ("profile=mine",), ("mine", 10, 0.3, 5, 0.2, 3)),
        ("child.toml", ("profile=released", "select.top_k=4"), ("released", 4, 0.3, 7, 0.0, 0)),
    ],
)
def test_a_profile_lies_over_its_file_and_under_the_command_line(source, words, expected):
    assert seen(source, *words) == expected


def test_a_file_can_name_its_profile_and_the_command_line_another(files):
    (files / "own.toml").write_text('extends = "child.toml"\nprofile = "released"\n')
    assert seen("own.toml") == seen("child.toml", "profile=released")
    assert seen("own.toml", "profile=paper") == seen("child.toml")


def test_a_file_can_have_none_of_what_it_extends_and_its_child_one_again(files):
    (files / "none.toml").write_text('extends = "parent.toml"\n[profiles]\nreleased = false\n')
    with pytest.raises(InputError, match=r"^no profile 'released'; none.toml has paper, mine$"):
        seen("none.toml", "profile=released")
    (files / "again.toml").write_text(
        'extends = "none.toml"\n[profiles.released.select]\nmin_gap = 0.4\n'
    )
    assert seen("again.toml", "profile=released") == ("released", 10, 0.4, 5, 0.2, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("profiles = 3", r"own.toml: profiles=3: give tables, \[profiles.NAME\]"),
        ("[profiles]\na = 3", r"own.toml: profiles.a=3: give a table of settings; or false"),
        ("profile = 3", "profile=3 in own.toml: give the name of a profile"),
        ('profile = "x"', "no profile 'x'; own.toml has paper$"),
        ('profile = "x"\n[profiles.x.select]\ntop_n = 3', "unknown key 'select.top_n'"),
        ('profile = "x"\n[profiles.x.stage1]\nlr = 3', "'stage1.lr' is 'train.stage1.lr' now"),
    ],
)
def test_a_wrong_profile_is_one_line(text, says, files):
    (files / "own.toml").write_text(f"{text}\n")
    with pytest.raises(InputError, match=says) as caught:
        load(RunConfig, "own.toml", ["source.path=tiny:world"])
    assert len(str(caught.value).splitlines()) == 1


def test_all_settings_as_a_file_come_back_with_the_name_and_no_other(files):
    config = load(RunConfig, "child.toml", ["profile=released"])
    (files / "all.toml").write_text(to_toml(config))
    assert load(RunConfig, "all.toml") == config
    assert load(RunConfig, "all.toml", ["profile=released"]) == config
    with pytest.raises(InputError, match=r"all\.toml holds the settings of profile released; name"):
        load(RunConfig, "all.toml", ["profile=paper"])
    (files / "runs" / "x").mkdir(parents=True)
    (files / "runs" / "x" / "config.toml").write_text(to_toml(config))
    _, values = find_run("x")
    assert RunConfig.model_validate(values) == config  # as `push` reads it


def test_the_name_is_no_result_and_the_settings_are():
    paper, released = (load(RunConfig, "child.toml", [f"profile={p}"]) for p in ("paper", "mine"))
    assert {**results_of({"run": paper}), "run.seed": 3} == results_of({"run": released})


def listed(out: str) -> dict[str, tuple[str, str]]:
    """Key to origin and value, of the dry run's list."""
    head, *lines = out.split("\n\n")[0].splitlines()
    assert head.startswith("settings of profile ")
    width = lines[0].index("source.path")
    found = {}
    for line in lines:
        key, _, value = line[width:].partition(" = ")
        assert key not in found
        found[key] = (line[:width].strip(), value)
    return found


def test_a_dry_run_lists_every_setting_with_its_origin_before_what_it_will_do(capsys):
    words = ["child.toml", "profile=released", "lora.rank=2"]
    assert cli.console(["run", *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.split("\n\n")[1].startswith("run folder ")
    found = listed(out)
    assert [*found] == [*flatten(load(RunConfig, "child.toml", words[1:]))]
    assert found == found | {
        "profile": ("command line", '"released"'),
        "lora.rank": ("command line", "2"),
        "lora.alpha": ("preset tiny", "8.0"),
        "select.top_k": ("profile released", "20"),
        "select.min_gap": ("child.toml", "0.3"),
        "evaluate.limit": ("profile released", "7"),
        "select.negligible": ("default", "true"),
        "train.stage2.caption_dropout": ("profile released", "0.0"),
        "train.stage2_alone.caption_dropout": ("as train.stage2", "0.0"),
        "train.stage2_alone.start": ("default", '"@stage1"'),
        "train.kto_images.objective": ("default", '"kto"'),
        "train.kto_images.utility": ("default", '"sigmoid"'),
    }


def test_a_dry_run_without_a_profile_lists_nothing(capsys):
    assert cli.console(["run", "tiny", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("run folder ")


def test_the_list_comes_before_the_complaint_that_photographs_are_missing(capsys):
    assert cli.console(["run", "sd15", "profile=paper", "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert listed(out)["source.path"] == ("default", "(required)")
    assert err == "error: 'source.path' is required: add source.path=VALUE\n"


ROW = {
    "name": "row",
    "set": {"select.top_k": 0, "select.min_gap": 0.5},
    "profiles": {"released": {"color.enabled": False, "select.min_gap": 0.6}},
    "profiles_times": {"released": {"select.top_k": 1, "train.stage1.steps": 2}},
}


@pytest.mark.parametrize(
    ("row", "profile", "expected"),
    [
        (ROW, "paper", ("paper", 0, 0.5, True, 80)),
        (ROW, "released", ("released", 20, 0.6, False, 160)),
        # A row that is about a profile has all that its preset or file says under that name.
        (ROW | {"set": {"profile": "released"}}, "paper", ("released", 20, 0.6, False, 160)),
        ({"name": "row", "set": {"profile": "paper"}}, "released", ("paper", 10, 0.1, True, 80)),
    ],
)
def test_a_row_has_settings_of_its_own_in_a_profile(row, profile, expected):
    base = load_config("parent.toml", [f"profile={profile}", "run=kept", "evaluate.limit=1"])
    planned = plan_row("table", Row.model_validate(row), base, seed=1)
    c = planned.config
    assert c is not None, planned.problem
    assert (c.profile, c.select.top_k, c.select.min_gap, c.color.enabled) == expected[:-1]
    assert c.train["stage1"].steps == expected[-1]
    assert (c.run, c.evaluate.limit, c.training_seed) == ("kept/table/row-seed1", 1, 1)


def test_a_row_of_an_unknown_profile_is_planned_with_the_reason():
    row = Row.model_validate({"name": "row", "set": {"profile": "x"}})
    planned = plan_row("table", row, load_config("parent.toml", []), seed=0)
    assert planned.problem == "no profile 'x'; parent.toml has paper, released, mine"

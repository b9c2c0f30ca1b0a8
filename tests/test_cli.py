"""The command line: what it prints, and how it ends when the user got something wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from corpus import encode, scene

from raypref import cli
from raypref.config import InputError, flatten, load
from raypref.execute import EVALUATE, _require_steps_before, plan
from raypref.key_help import describe
from raypref.pipeline import Run, RunConfig

ROOT = Path(__file__).parents[1]
SD15 = ["sd15", "source.path=photos", "evaluate.prompts=prompts.txt"]
STEPS = ["pairs", "cache", "stage1", "stage2", "stage2_alone", "evaluation", "card", "report"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with two photographs, one captioned, and a prompt file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.jpg").write_bytes(encode(scene(number), "JPEG"))
    (photos / "0.txt").write_text("a scene")
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    return tmp_path


def job(*arguments: str, **changes: Any) -> int:
    """Run the whole job's command line."""
    about: dict[str, Any] = {"script": "jobs/x.py", "what": "Does x.", "only": ()}
    return cli.main(arguments, **{**about, "result": "report", **changes})


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["nonsense", "also=wrong", "--help"]])
def test_help_names_every_setting(arguments, capsys):
    assert job(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "python jobs/x.py" in out
    assert "Does x." in out
    assert "sd15, sd35m, tiny" in out
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    for key in flatten(load(RunConfig, "tiny")):
        assert listed.count(re.sub(r"^train\.\w+\.", "train.NAME.", key)) == 1, key
    assert all(f"  {line}" in out for line in describe(RunConfig))


def test_dry_run_tells_and_leaves_nothing(here, capsys, tmp_path_factory):
    before = sorted(here.rglob("*"))
    assert job("tiny", "run=mine", "train.stage2.beta=7", "source.path=photos", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert sorted(here.rglob("*")) == before
    settings, steps = out.split(f"# Steps of {Path.cwd()}/runs/mine:\n")
    again = tmp_path_factory.mktemp("toml") / "again.toml"
    again.write_text(settings)
    overrides = ["run=mine", "train.stage2.beta=7", "source.path=photos"]
    assert load(RunConfig, str(again)) == load(RunConfig, "tiny", overrides)
    assert [line.split() for line in steps.splitlines()] == [["#", name, "run"] for name in STEPS]


def test_dry_run_of_a_part_says_what_is_not_its_own(capsys):
    assert job("--dry-run", only=["cache", "stage1"]) == 0
    steps = capsys.readouterr().out.splitlines()[-len(STEPS) :]
    mine = [line.split()[1] for line in steps if line.split()[2:] == ["run"]]
    assert mine == ["cache", "stage1"]


def test_the_preset_may_be_left_out_and_flags_stand_anywhere(capsys):
    assert job("--dry-run", "run=mine") == 0
    first = capsys.readouterr().out
    assert job("run=mine", "--dry-run") == job("tiny", "--dry-run", "run=mine") == 0
    assert capsys.readouterr().out == first * 2


def test_a_file_of_settings(here, capsys):
    (here / "own.toml").write_text('extends = "tiny"\nrun = "from-file"\n')
    assert job("own.toml", "--dry-run") == 0
    assert f"# Steps of {here}/runs/from-file:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train.stage2.bta=1"], ["'train.stage2.bta'", "'train.stage2.beta'"]),
        (["train.stage2.beta=much"], ["train.stage2.beta='much'"]),
        (["train.stage2.beta=-1"], ["train.stage2.beta=-1"]),
        (["run="], ["run=''"]),
        (["--dryrun"], ["--dryrun", "--help"]),
        (["-x", "--redo"], ["-x"]),
        (["run=a", "tiny"], ["'tiny'", "key=value"]),
        (["sd51"], ["'sd51'", "sd15, sd35m, tiny"]),
        (["lost.toml"], ["'lost.toml'"]),
        (["sd15"], ["source.path=VALUE"]),
        (["source.path=lost"], ["source.path", "'lost'"]),
        (["source.path=empty"], ["source.path", "empty'", "captions.csv"]),
        (["source.path=plain"], ["source.path", "plain'", "not one caption"]),
        (["source.path=~nobody-here/p"], ["source.path", "~nobody-here/p"]),
        (["storage=s3://bucket/runs", "run=my run"], ["s3://bucket/runs/my run"]),
        (["storage=ftp://bob:secret@host/runs"], ["ftp://***@host/runs"]),
        (["source.path=photos", "evaluate.prompts="], ["evaluate.prompts"]),
        (["source.path=photos", "evaluate.prompts=lost.txt"], ["lost.txt"]),
        (["source.path=photos", "perturb.model=tiny:lost"], ["tiny:lost"]),
        (["source.path=photos", "saliency.weights=lost.pth"], ["saliency.weights", "lost.pth"]),
        (["source.path=photos", "base.model=./lost"], ["base.model", "./lost"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, here, capsys):
    (here / "empty").mkdir()
    (here / "plain").mkdir()
    (here / "plain" / "a.jpg").write_bytes(encode(scene(), "JPEG"))
    assert job(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "secret" not in line
    for part in says:
        assert part in line
    assert not (here / "runs").exists(), "work was begun"


def test_missing_models_are_told_all_at_once_with_the_way_to_get_them(monkeypatch, capsys, here):
    # An empty cache of the hub; conftest.py has cut the network off.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(here / "hub"))
    assert job(*SD15) == 2
    lines = capsys.readouterr().err.splitlines()
    expected = {
        "saliency.weights": ("u2net.pth", "github.com/xuebinqin/U-2-Net"),
        "perturb.model": ("model_index.json", "hf download stable-diffusion-v1-5/stable-d"),
        "pickscore.model": ("config.json", "hf download yuvalkirstain/PickScore_v1"),
        "base.model": ("model_index.json", "hf download stable-diffusion-v1-5/stable-d"),
    }
    by_key = {line.removeprefix("error: ").partition(":")[0]: line for line in lines}
    assert len(by_key) == len(lines)
    assert expected.keys() <= by_key.keys()
    for key, (file, way) in expected.items():
        assert by_key[key].startswith("error: ")
        assert file in by_key[key]
        assert way in by_key[key]
        assert f"set {key}=" in by_key[key]
    assert not (here / "runs").exists(), "work was begun"


@pytest.mark.parametrize(
    ("storage", "alone", "submitted"),
    [
        ("mine", "{here}/mine/run", "{here}/home/mine/run"),
        ("{here}/x", "{here}/x/run", "{here}/x/run"),
        ("file://{here}/x", "file://{here}/x/run", "file://{here}/x/run"),
        ("~/x", "{here}/home/x/run", "{here}/home/x/run"),
    ],
    ids=["relative", "absolute", "uri", "home"],
)
def test_a_submitted_job_writes_below_the_home_directory(
    storage, alone, submitted, here, monkeypatch, capsys
):
    """Ray deletes the working directory of a job: what is relative goes elsewhere."""
    # The rendered world is found where it was, not made again below the new home.
    cache = os.environ.get("RAYPREF_CACHE") or Path.home() / ".cache" / "raypref"
    monkeypatch.setenv("RAYPREF_CACHE", str(cache))
    monkeypatch.setenv("HOME", str(here / "home"))
    command = [f"storage={storage.format(here=here)}", "--dry-run"]
    assert job(*command) == 0
    assert f"# Steps of {alone.format(here=here)}:" in capsys.readouterr().out
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert job(*command) == 0
    assert f"# Steps of {submitted.format(here=here)}:" in capsys.readouterr().out


def test_a_part_without_the_one_before_it_is_refused(here, capsys):
    assert job("source.path=photos", only=("cache", "stage1")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: pairs of ")
    assert "run the job before this one" in line
    assert not (here / "runs").exists(), "work was begun"


def test_an_export_asked_for_later_holds_up_no_other_job(here):
    run = Run(load(RunConfig, "tiny", ["export.formats=['folders']"]))
    for step in run.steps:
        if step.name in ("pairs", "cache", *run.trained):
            for ledger in step.ledgers():
                ledger.begin()
                ledger.commit(expected=0, counts={})
    states = dict(line.split(maxsplit=1) for line in plan(run, only=EVALUATE))
    assert states["evaluation"] == "run"
    _require_steps_before(run, [step for step in run.steps if step.name in EVALUATE])
    next(step for step in run.steps if step.name == "cache").ledgers()[0].clear()
    with pytest.raises(InputError, match=r"^cache of .* is not complete"):
        _require_steps_before(run, [step for step in run.steps if step.name in EVALUATE])


def test_the_scripts_exit_with_the_status():
    """One real process: exit status 2, a single line on stderr, nothing else said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "jobs" / "full_pipeline.py"), "train.stage2.bta=1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1

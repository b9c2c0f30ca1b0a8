"""The command line: what it prints, and how it ends when the user got something wrong."""

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from corpus import encode, scene

from raypref import __version__, cli
from raypref.cli import COMMANDS
from raypref.commands import Given
from raypref.core.config import fields_of, flatten, load, presets
from raypref.run.config import RunConfig

ROOT = Path(__file__).parents[1]
SD15 = ["sd15", "source.path=photos", "evaluate.prompts=prompts.txt"]
# Each command's script in jobs/.
NAMES = (
    "flux, flux2_klein, fyp_flux, fyp_sd15, fyp_tiny, qwen_image, sd15, sd35m, sdxl, tiny, z_image"
)
SCRIPTS = {"run": "full_pipeline"} | {name: name for name in COMMANDS if name != "run"}


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


def job(*arguments: str, command: str = "run") -> int:
    """Give a command; returns its exit status."""
    return cli.console([command, *arguments])


def script(command: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command's script in jobs/ as `python jobs/NAME.py` does; returns its exit status."""
    path = ROOT / "jobs" / f"{SCRIPTS[command]}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    return end.value.code


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_names_what_people_set_first(command, capsys):
    for words in ["--help"], ["-h"], ["nonsense", "also=wrong", "--help", "--dry-run"]:
        assert job(*words, command=command) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.startswith(f"usage: raypref {command} ")
        assert NAMES in " ".join(out.split()) and "Exit status: " in out
        assert len(out.splitlines()) <= 45 and max(map(len, out.splitlines())) <= 100
        told = out.split("people set first:\n")[1].split("\n\n")[0].splitlines()
        assert len(told) == 10
        every = {key for key, _ in fields_of(COMMANDS[command].settings)}
        assert {line.split()[0] for line in told} <= every


def test_help_all_names_every_setting_in_plain_words(capsys):
    assert job("--help", "all") == 0
    out = capsys.readouterr().out
    listed = [line.split()[0] for line in out.splitlines() if re.match(r"  \w", line)]
    for key in flatten(load(RunConfig, "tiny")):
        assert listed.count(re.sub(r"^train\.\w+\.", "train.NAME.", key)) == 1, key
    assert max(map(len, out.splitlines())) <= 100
    assert "typing" not in out and "tuple" not in out and "NoneType" not in out
    assert "  export.formats  (list of pickapic|folders, default none)\n" in out
    assert "  evaluate.seeds  (list of integer, default 42,123,456,789,1000)\n" in out
    # The text of a meaning is all there, however it is wrapped.
    fields = dict(fields_of(RunConfig))
    assert fields["source.layout"].description in " ".join(out.split())


@pytest.mark.parametrize(
    ("topic", "keys", "absent"),
    [
        ("perturb", ["perturb.kind", "perturb.resources.num_gpus"], "lora.rank"),
        ("lora rank", ["lora.rank", "lora.alpha"], "lora.targets"),
        ("LORA RANK", ["lora.rank"], "lora.targets"),
        ("stage2", ["train.stage2.beta", "train.stage2.steps"], "train.NAME.beta"),
        ("train.stage1", ["train.stage1.steps"], "lora.rank"),
        ("beta", ["train.NAME.beta"], "lora.rank"),
        ("seed", ["seed", "training_seed", "evaluate.seeds"], "lora.rank"),
    ],
)
def test_help_of_a_topic_prints_its_settings(topic, keys, absent, capsys):
    assert job("tiny", "--help", *topic.split()) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert {*keys} <= {*listed} and absent not in listed


def test_help_of_what_no_setting_has_names_the_sections(capsys):
    assert job("--help", "perturbb") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no setting has 'perturbb'") and "perturb, pickscore" in line


def test_resolved_settings_read_back(capsys, tmp_path_factory):
    words = ["tiny", "run=mine", "train.stage2.beta=7", "source.path=photos"]
    assert job(*words, "--resolved") == 0
    again = tmp_path_factory.mktemp("toml") / "again.toml"
    again.write_text(capsys.readouterr().out)
    assert load(RunConfig, str(again)) == load(RunConfig, "tiny", words[1:])
    for command, table in (("ablate", ["table3"]), ("judge", [])):
        assert job(*table, "tiny", "run=mine", "--resolved", command=command) == 0
        assert tomllib.loads(capsys.readouterr().out)["run"] == "mine"


def test_dry_run_of_a_part_says_what_is_not_its_own(capsys):
    assert job("tiny", "--dry-run", command="align") == 2
    out, err = capsys.readouterr()
    assert "cache > stage1 > stage2 > stage2_alone" in out
    assert job("tiny", command="align") == 2  # the job itself says the same
    assert capsys.readouterr().err == err
    assert "has no pairs for these settings yet" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_no_job_starts_without_a_preset_or_file(command, capsys, here):
    assert job(command=command) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"usage: raypref {command} ") and NAMES in err
    table = ["table3"] if command == "ablate" else []
    for words in [["run=mine"], ["--log", "json", "run=mine"]]:
        assert job(*table, *words, command=command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        said = f"name a preset ({NAMES}) or FILE.toml, as in: raypref {command} "
        assert line == f"error: {said}{''.join(f'{name} ' for name in table)}tiny"
    assert not (here / "runs").exists()


def test_a_file_of_settings(here, capsys):
    (here / "own.toml").write_text('extends = "tiny"\nrun = "from-file"\n')
    assert job("own.toml", "--dry-run") == 0
    assert f"run folder   {here}/runs/from-file\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train.stage2.bta=1"], ["'train.stage2.bta'", "'train.stage2.beta'"]),
        (["train.stage2.beta=much"], ["train.stage2.beta='much'"]),
        (["train.stage2.beta=-1"], ["train.stage2.beta=-1"]),
        (["run="], ["run=''"]),
        (["--dryrun"], ["--dryrun", "the nearest is --dry-run", "--help"]),
        (["-x", "--redo"], ["-x"]),
        (["run=a", "tiny", "own"], ["'own'", "key=value"]),
        (["--log", "xml"], ["--log=xml", "auto, lines, json"]),
        (["--log"], ["--log needs a value"]),
        (["--run"], ["--run needs a value", "--run=VALUE"]),
        (["--beta", "1000"], ["--beta", "train.stage2.beta=1000, train.stage2_alone.beta=1000"]),
        (["beta=1000"], ["'beta'", "train.stage2.beta=1000, "]),
        (["--batch=8"], ["perturb.resources.batch=8", "more (--help batch lists them)"]),
        (["photos/"], ["'photos/'", "source.path=photos/"]),
        (["prompts.txt"], ["'prompts.txt'", "source.path=prompts.txt"]),
        (["evaluate.seeds=1,b"], ["evaluate.seeds", "'b'", "integer"]),
        (["sd51"], ["'sd51'", "sd15, sd35m, sdxl, tiny"]),
        (["lost.toml"], ["'lost.toml'"]),
        (["~nobody-here/p"], ["'~nobody-here/p'", "sd15, sd35m, sdxl, tiny"]),
        (["sd15"], ["source.path=VALUE"]),
        (["source.path=lost"], ["source.path", "'lost'"]),
        (["source.path=empty"], ["source.path", "empty'", "captions.csv"]),
        (["source.path=plain"], ["source.path", "plain'", "not one caption"]),
        (["source.path=~nobody-here/p"], ["source.path", "~nobody-here/p"]),
        (["storage=s3://bucket/runs", "run=my run"], ["s3://bucket/runs/my run"]),
        (["storage=ftp://bob:secret@host/runs"], ["ftp://***@host/runs"]),
        (
            ["source.path=photos", "evaluate.prompts=prompts.txt,a.csv"],
            ["evaluate.prompts", "'a.csv'"],
        ),
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
    named = {"sd51", "sd15", "lost.toml", "photos/", "prompts.txt", "~nobody-here/p", "tiny"} & {
        *arguments
    }
    assert job(*([] if named else ["tiny"]), *arguments) == 2
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
    command = ["tiny", f"storage={storage.format(here=here)}", "--dry-run"]
    assert job(*command) == 0
    assert f"run folder   {alone.format(here=here)}\n" in capsys.readouterr().out
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert job(*command) == 0
    assert f"run folder   {submitted.format(here=here)}\n" in capsys.readouterr().out


def test_a_part_without_the_one_before_it_is_refused(here, capsys):
    assert job("tiny", "source.path=photos", command="align") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {here}/runs/run has no pairs for these settings yet. ")
    assert line.endswith("Run raypref curate or raypref run with the same settings first")
    assert not (here / "runs").exists(), "work was begun"


def test_every_command_has_one_script_and_every_script_a_command():
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert sorted(SCRIPTS.values()) == sorted(scripts)
    assert " ".join(COMMANDS) == "run curate align evaluate ablate sample judge arena"


LINES = {
    "tiny": Given("", "tiny", [], frozenset()),
    "sd15": Given("", "sd15", [], frozenset()),
    "own.toml a=1 b=2": Given("", "own.toml", ["a=1", "b=2"], frozenset()),
    "a=1 tiny": Given("", "tiny", ["a=1"], frozenset()),
    "--train.stage2.beta 7 tiny": Given("", "tiny", ["train.stage2.beta=7"], frozenset()),
    "tiny --run=-x --seed -1": Given("", "tiny", ["run=-x", "seed=-1"], frozenset()),
    "--log json tiny --log=lines": Given("", "tiny", [], frozenset(), "lines"),
    "--dry-run sd15 a=-1": Given("", "sd15", ["a=-1"], frozenset({"--dry-run"})),
    "tiny a=1 --redo": Given("", "tiny", ["a=1"], frozenset({"--redo"})),
    "tiny --resolved": Given("", "tiny", [], frozenset({"--resolved"})),
}


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_script_and_its_command_read_a_line_alike(command, line, monkeypatch, capsys):
    seen: list[Given] = []

    def work(given: Given) -> int:
        seen.append(given)
        return 7

    monkeypatch.setitem(COMMANDS, command, COMMANDS[command]._replace(work=work))
    table = ["table3"] if command == "ablate" else []
    words = [*table, *line.split()]
    statuses = [script(command, words, monkeypatch), job(*words, command=command)]
    if LINES[line].flags <= COMMANDS[command].flags.keys():
        assert statuses == [7, 7]
        assert seen == [LINES[line]._replace(table="".join(table))] * 2
    else:
        assert (statuses, seen) == ([2, 2], [])
        (flag,) = LINES[line].flags
        first, second = capsys.readouterr().err.splitlines()
        assert first == second and first.startswith(f"error: unknown option {flag}; ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_script_and_its_command_say_the_same_but_for_their_names(command, monkeypatch, capsys):
    for words, status in (["--help"], 0), (["sd51"], 2), (["tiny", "judge.pears=x"], 2):
        given = ["table3", *words] if command == "ablate" else words
        assert script(command, given, monkeypatch) == status
        by_script = capsys.readouterr()
        assert job(*given, command=command) == status
        by_command = capsys.readouterr()
        name = f"python jobs/{SCRIPTS[command]}.py"
        # Longer lines are wrapped elsewhere.
        same = by_script.out.replace(name, f"raypref {command}").split()
        assert same == by_command.out.split()
        assert by_script.err == by_command.err
        assert len(by_command.err.splitlines()) == (status == 2)
    assert "'judge.pears'" in by_command.err and "'judge.pairs'" in by_command.err


def test_a_table_that_is_not_named_is_asked_for(capsys):
    assert job("--dry-run", command="ablate") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: name a table: ") and "table3" in line


def test_ablate_first_says_what_it_does(capsys):
    assert job("table3", "tiny", "--dry-run", command="ablate") == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("table3: ") and len(first) > 20
    assert second == "table3:"  # the plan


def test_the_console_command_lists_the_others(capsys):
    for words in (["--help"], ["-h"], ["--help", "run"]):
        assert cli.console(words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        first = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
        assert first[: len(COMMANDS)] == [*COMMANDS]
        assert first.count("raypref") == 4, "examples"
        names = [line.strip().partition("  ")[0] for line in out.splitlines()]
        assert {*presets()} <= {*", ".join(names).split(", ")}
        assert len(out.splitlines()) <= 38 and max(map(len, out.splitlines())) <= 100
    assert cli.console([]) == 2
    nothing = capsys.readouterr()
    assert (nothing.out, nothing.err) == ("", out)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("runn", "no command 'runn'; the nearest is 'run'"),
        ("evalute", "no command 'evalute'; the nearest is 'evaluate'"),
        ("", "no command ''; the nearest is '"),
        ("--dry-run", "no command '--dry-run'; the nearest is '"),
        ("own.toml", "the command comes first: raypref run own.toml"),
        *((name, f"the command comes first: raypref run {name}") for name in presets()),
    ],
)
def test_an_unknown_command_names_the_nearest(word, says, capsys):
    assert cli.console([word, "run", "--help"]) == 2
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == ""
    assert first.startswith("error: ") and says in first
    commands = "run|curate|align|evaluate|ablate|sample|judge|arena|paper|push|rubric|study"
    assert second == f"usage: raypref {commands} ...; see raypref --help"


def test_the_version_is_that_of_the_package(capsys):
    assert cli.console(["--version"]) == 0
    name, version, *commit = capsys.readouterr().out.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (name, version) == ("raypref", project["version"]) == (project["name"], __version__)
    assert not commit or commit[0] == "(commit"


def test_real_processes_exit_with_the_status(tmp_path):
    """Exit status 2, a single line on stderr, nothing else said; a reader may leave early."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    by_script = [sys.executable, str(ROOT / "jobs" / "full_pipeline.py")]
    by_module, wrong = [sys.executable, "-m", "raypref"], "train.stage2.bta=1"
    for command in ([*by_script, "tiny", wrong], [*by_module, "run", "tiny", wrong]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
    read, write = os.pipe()
    os.close(read)
    command = [*by_module, "run", "--help", "all"]
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")

"""`raypref paper`: a command per table and figure that parses, its needs, and what was run."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from raypref import cli
from raypref.ablate.plan import load_config, planned_rows
from raypref.ablate.predicted import predicted_hours
from raypref.ablate.table import Table, names, read_table

OF_PAPER = {
    *("Table 1a", "Table 1b", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6"),
    *("Table 7a", "Table 7b", "Table 8"),
    *("Figure 2a", "Figure 2b", "Figure 4", "Figure 5", "Figure 8", "Figure 10"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the commands name as files of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    for folder in ("hpdv3", "pickapic", "civitai-top", "dpg_bench/prompts"):
        (tmp_path / folder).mkdir(parents=True)
    record = '{"prompt": "a", "model1": "real_images", "path1": "a.png"}'
    (tmp_path / "hpdv3/all.json").write_text(f"[{record}]")
    Image.new("RGB", (64, 64)).save(tmp_path / "hpdv3/a.png")
    for name in ("pick-a-pic-v2-test.txt", "dpg_bench/prompts/0.txt"):
        (tmp_path / name).write_text("a red ball\n")
    (tmp_path / "drawbench.csv").write_text("Prompts,prompt\na,a red ball\n")
    (tmp_path / "PartiPrompts.tsv").write_text("Prompt\tCategory\na red ball\tObjects\n")
    (tmp_path / "dpg_bench/dpg_bench.csv").write_text(
        "item_id,text,proposition_id,dependency,category_broad,category_detailed,"
        "question_natural_language\n0,a red ball,1,0,entity,whole,Is there a ball?\n"
    )
    (tmp_path / "stylization.csv").write_text("method,value\nbase,0.3\n")
    (tmp_path / "votes.csv").write_text("prompt_id,category,rater,left,right,choice\n")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.console(["paper", *words]) == 0
    return capsys.readouterr().out


def test_every_table_and_figure_of_the_paper_has_a_table():
    assert {read_table(name).paper for name in names()} - {""} == OF_PAPER


def test_every_command_it_prints_parses(capsys):
    commands = re.findall(r"^  (raypref .*)$", said(capsys), re.MULTILINE)
    tables = {name for name in names() if read_table(name).paper}
    assert {shlex.split(command)[2] for command in commands} == tables
    assert len(commands) == len({*commands}) == len(tables) + 6  # both base models have six
    for command in commands:
        assert cli.console([*shlex.split(command)[1:], "--dry-run"]) == 0, command
        out, err = capsys.readouterr()
        assert err == ""
        waiting = [line for line in out.splitlines() if "not given" in line]
        assert not waiting, (command, waiting)


def test_values_of_ones_own_take_the_place_of_those_it_names(capsys):
    words = ["table1b", "sd15", "source.path=mine", "ablate.partiprompts=p.tsv", "storage=there"]
    text = said(capsys, *words)
    (command,) = re.findall(r"^  (raypref .*)$", text, re.MULTILINE)
    assert "source.path=hpdv3" not in command and "PartiPrompts.tsv" not in command
    assert command.endswith("source.path=mine ablate.partiprompts=p.tsv storage=there")
    assert "data     evaluate.prompts=pick-a-pic-v2-test.txt" in text
    assert "here     not run in there" in text
    assert "sd35m" not in command and "GPU      about" in text


def test_published_values_stand_beside_what_was_run_here(here, capsys):
    text = said(capsys, "table3", "--published")
    assert re.search(r"stage 2 alone +20\.74 +6\.11 +3\.93 +5\.52\n +here +not run", text)
    folder = here / "runs/mine/table3"
    folder.mkdir(parents=True)
    model = load_config("sd15", ["source.path=x"]).base.model
    (folder / "config.toml").write_text(f'[base]\nmodel = "{model}"\n')
    (folder / "table.csv").write_text("model,metric,mean\nbase,pickscore,20.5\nstage1,fid,\n")
    text = said(capsys, "table3", "--published")
    assert re.search(r"base +20\.65 .*\n +here +20\.50 +not run", text)
    assert f"here     1 of 4 rows in {folder}" in text
    # Made with another base model, it says nothing of this one.
    (folder / "config.toml").write_text('[base]\nmodel = "tiny:sd15"\n')
    assert "not run in runs" in said(capsys, "table3")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["table9"], "'table9' is no table or figure of the paper"),
        (["beta"], "'beta' is no table or figure of the paper"),
        (["sd15", "sd35m"], "'sd35m' is a second preset or file"),
        (["table3", "train.stage2.bta=1"], "train.stage2.beta"),
    ],
)
def test_wrong_words_are_one_line(words, reason, capsys):
    assert cli.console(["paper", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


FACTS = {
    "h100": {"sd15": {"score": 3600.0, "twin": 0.0, "dro": 1.0, "dpo": 1.0, "image": 36.0}},
    "photographs": {"all": 1, "colorful": 1, "passing": 1},
}


def test_hours_count_what_rows_share_once():
    """Stage 1 is one training for two betas of stage 2; the base's images are drawn once."""
    config = load_config("tiny", ["evaluate.prompts=p.txt"])
    rows = [
        {"name": "base", "model": "base"},
        {"name": "again", "model": "base", "set": {"train.stage2.beta": 5.0}},
        {"name": "one"},
        {"name": "two", "set": {"train.stage2.beta": 5.0}},
    ]
    table = Table.model_validate({"title": "T", "rows": rows})
    planned = planned_rows("t", table, config, read=False)
    hours = predicted_hours(planned, FACTS, prompts={"p.txt": 100})
    samples = config.train["stage1"].steps * config.train["stage1"].batch
    assert hours.pairs == 1.0
    assert hours.trainings == pytest.approx(3 * samples / 3600)  # the tiny stages are alike
    assert hours.images == pytest.approx(3 * 100 * 2 * 36 / 3600)

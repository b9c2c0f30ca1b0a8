"""Several prompt sets for one trained model: nothing is made twice, refused or overwritten."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from report_runs import fill

from raypref.core.config import InputError, build, load, to_toml
from raypref.curate.publish import PHOTOS
from raypref.evaluate import every, graph, sets, tables
from raypref.evaluate.generate import GenerateConfig
from raypref.report.page import render
from raypref.report.views import ReportData
from raypref.run.config import RunConfig
from raypref.run.execute import EVALUATE, _store_results, _take, require_steps_before
from raypref.run.outlook import step_states
from raypref.run.pipeline import Run

WORK = SimpleNamespace(busy=0.0)  # what a pass returns
PAGE: dict[str, Any] = {"title": "t", "subtitle": "s", "config_toml": ""}
MODELS, SEEDS = ("base", "stage1"), 2
TRAINED = 'trainings=["stage1"]'
SETTINGS = ("metrics.distance=false", "metrics.critic=''", f"evaluate.seeds={[1, 2]}")
GIVEN = (TRAINED, *SETTINGS)


# ------------------------------------------------------------------ settings and names


def test_one_file_stays_text_and_several_may_be_a_list_or_words():
    """A single file must look as it did: `run.json` knows a run by its settings."""
    for given in ("a.txt", ["a.txt"], "a.txt,"):
        assert build(GenerateConfig, {"prompts": given}).prompts == "a.txt"
    for given in ("a.txt, b.csv", ["a.txt", "b.csv"]):
        config = build(GenerateConfig, {"prompts": given})
        assert config.prompts == config.files == ("a.txt", "b.csv")
    assert build(GenerateConfig, {"prompts": ""}).files == ()
    with pytest.raises(InputError, match=r"evaluate\.prompts: a\.txt is named twice"):
        build(GenerateConfig, {"prompts": "a.txt,a.txt"})


def test_settings_of_several_files_are_read_back_as_they_were(tmp_path):
    (tmp_path / "with, comma.txt").write_text("a\n")
    config = load(RunConfig, "tiny", [f"evaluate.prompts={tmp_path}/with, comma.txt"])
    assert config.evaluate.files == (f"{tmp_path}/with, comma.txt",)
    several = load(RunConfig, "tiny", ["evaluate.prompts=a.txt,b.csv"])
    file = tmp_path / "again.toml"
    file.write_text(to_toml(several))
    assert load(RunConfig, str(file)) == several
    by_list = load(RunConfig, "tiny", ['evaluate.prompts=["a.txt", "b.csv"]'])
    assert by_list == several


def test_a_set_is_called_as_its_file():
    files = ["x/parti.tsv", "s3://b/draw bench.csv", "tiny:prompts", "y/parti.tsv", "images.txt"]
    names = ["parti", "draw-bench", "prompts", "y-parti", "images-prompts"]
    assert list(sets.names_of(files)) == names
    assert len(sets.names_of(["a/b/p.txt", "c/b/p.txt", "d/b/p.txt"])) == 3


# ------------------------------------------------------------------ a trained run, drawn at once


@pytest.fixture
def made(tmp_path, monkeypatch) -> list[tuple[str, str]]:
    """Where images come from in these tests: (model, prompt) of each, as they are made."""
    drawn: list[tuple[str, str]] = []

    def draw(rows: pa.Table, *, ledger: Any, keep: list[str], **more: Any) -> Any:
        png = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(png, "PNG")
        for model, own in ledger.ledgers.items():
            mine = [{**row, "image": png.getvalue()} for row in rows.to_pylist()]
            mine = [row for row in mine if row["model"] == model]
            drawn.extend((model, row["prompt"]) for row in mine)
            fill(own, mine, pa.schema([*rows.schema, ("image", pa.binary())]))
        return WORK

    def measure(selected: Any, *, branches: Any, **more: Any) -> Any:
        for branch in branches:
            columns = ["id", *graph.FACTS]
            values = [name for name in branch.keep if name not in columns]
            for model, own in branch.ledger.ledgers.items():
                rows = selected.ledger.ledgers[model].table(columns[1:]).to_pylist()
                rng = np.random.default_rng(len(model))
                scored = [{**row, **{name: rng.normal() for name in values}} for row in rows]
                schema = pa.schema(
                    [(n, pa.string()) for n in ("id", "model", "prompt")]
                    + [(n, pa.int64()) for n in ("prompt_id", "seed")]
                    + [(n, pa.float64()) for n in values]
                )
                fill(own, scored, schema)
        return WORK

    monkeypatch.setattr(graph, "stream", draw)
    monkeypatch.setattr(graph, "stream_branches", measure)
    monkeypatch.setattr(every, "draw_samples", lambda *about, **more: 0.0)
    for name, texts in {
        "a.txt": "red\nblue\n",
        "b.csv": "prompt\ncat\n",
        "c.txt": "x\ny\n",
    }.items():
        (tmp_path / name).write_text(texts)
    run = trained(tmp_path)
    for step in run.steps:
        if step.name in ("pairs", "cache", "stage1"):
            for ledger in step.ledgers():
                ledger.begin()
                ledger.commit(expected=0, counts={})
    return drawn


def trained(folder: Path, *files: str, more: tuple[str, ...] = ()) -> Run:
    named = ",".join(str(folder / file) for file in files) or str(folder / "a.txt")
    given = [TRAINED, *SETTINGS, f"storage={folder}", f"evaluate.prompts={named}", *more]
    return Run(load(RunConfig, "tiny", given))


def evaluate(run: Run) -> list[str]:
    """Evaluate; returns names of the tables."""
    require_steps_before(run, only=EVALUATE)
    step = next(step for step in run.steps if step.name == "evaluation")
    assert not [ledger for ledger in step.ledgers() if ledger.state() == "stale"]
    if not step.done:
        step.run()
    assert step.done
    return [table.name for table in run.evaluations.tables()]


def test_two_sets_then_a_third_makes_three_tables_and_no_image_twice(tmp_path, made):
    assert evaluate(trained(tmp_path, "a.txt", "b.csv")) == ["a", "b"]
    assert len(made) == len(MODELS) * SEEDS * 3
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("part-*.parquet")}
    made.clear()
    third = trained(tmp_path, "c.txt")
    assert evaluate(third) == ["c", "a", "b"]  # this command's first
    assert {prompt for _, prompt in made} == {"x", "y"}
    assert len(made) == len(MODELS) * SEEDS * 2
    made.clear()
    assert evaluate(trained(tmp_path, "b.csv", "c.txt", "a.txt")) == ["b", "c", "a"]
    assert made == []
    assert {p: p.stat().st_mtime_ns for p in files} == files
    folder = tmp_path / "run" / "evaluation"
    for at, prompts in ((folder, 2), (folder / "b", 1), (folder / "c", 2)):
        assert (at / "table.md").is_file() and (at / "wins.csv").is_file()
        assert json.loads((at / "prompts.json").read_text())["name"] == (
            "a" if at == folder else at.name
        )
        rows = sum(pa.parquet.read_metadata(f).num_rows for f in at.glob("images/base/part-*"))
        assert rows == prompts * SEEDS


def test_the_first_set_has_the_folder_and_fingerprints_that_it_always_had(tmp_path, made):
    run = trained(tmp_path, "a.txt", "b.csv")
    images, others = (each.images.ledgers["base"] for each in run.evaluations.all)
    assert images.path == f"{tmp_path}/run/evaluation/images/base"
    assert others.path == f"{tmp_path}/run/evaluation/b/images/base"
    # As always: how many prompts, and the hash of their JSON list.
    assert images.settings["prompts"] == "2, sha256 d4d061dc39d86523"
    assert "evaluate.prompts" not in images.settings
    scores = run.evaluation.scores("pickscore").ledgers["stage1"]
    assert scores.path == f"{tmp_path}/run/evaluation/scores/stage1/pickscore"


def test_a_file_that_was_changed_is_another_set_and_its_old_table_stays(tmp_path, made):
    evaluate(trained(tmp_path, "a.txt"))
    before = (tmp_path / "run" / "evaluation" / "table.csv").read_bytes()
    places = ["evaluation"]
    for number in range(2):
        (tmp_path / "a.txt").write_text(f"green {number}\n")
        run = trained(tmp_path, "a.txt")
        evaluate(run)
        places.append(run.evaluation.set.at)
    assert places[:2] == ["evaluation", "evaluation/a"]
    assert places[2].startswith("evaluation/a-") and len(places[2]) == len("evaluation/a-") + 8
    assert (tmp_path / "run" / "evaluation" / "table.csv").read_bytes() == before
    names = [table.name for table in run.evaluations.tables()]
    assert names == ["a", "a (evaluation)", "a (evaluation/a)"]


def test_other_settings_for_the_same_prompts_are_refused_as_before(tmp_path, made):
    evaluate(trained(tmp_path, "a.txt"))
    states = step_states(trained(tmp_path, more=("evaluate.steps=3",)))
    assert states["evaluation"] == "changed"


def test_the_table_of_another_training_is_not_shown_beside(tmp_path, made):
    evaluate(trained(tmp_path, "a.txt", "b.csv"))
    stage1 = trained(tmp_path, more=("train.stage1.lr=1e-6",)).trained["stage1"]
    stage1.clear()
    stage1.begin()
    stage1.commit(expected=0, counts={})
    retrained = trained(tmp_path, "c.txt", more=("train.stage1.lr=1e-6",))
    evaluations = retrained.evaluations
    assert evaluations.run(trained={}, streaming=retrained.config.stream)
    assert [table.name for table in evaluations.tables()] == ["c"]


def test_the_table_of_an_older_version_stays_on_the_page(tmp_path, made):
    evaluate(trained(tmp_path, "a.txt"))
    (tmp_path / "run" / "evaluation" / "prompts.json").unlink()
    assert evaluate(trained(tmp_path, "c.txt")) == ["c", "first"]


def test_page_and_card_have_a_table_per_set(tmp_path, made):
    run = trained(tmp_path, "a.txt", "b.csv")
    evaluate(run)
    found = run.evaluations.tables()
    page = render(ReportData(**PAGE, table=found[0].table, sets=found, labels=run.labels))
    assert page.count('<table class="scores">') == 2
    assert "Prompts: a</h3>" in page and "Prompts: b</h3>" in page
    assert "evaluation/b/table.csv" in page
    one = render(ReportData(**PAGE, table=found[0].table, sets=found[:1], labels=run.labels))
    assert one.count('<table class="scores">') == 1 and "Prompts:" not in one
    text = tables.several(found, labels=run.labels)
    assert text.index("### a\n") < text.index("| stage 1 |") < text.index("### b\n")
    assert tables.several(found[:1]) == tables.markdown(found[0].table)
    assert tables.several([]) == ""


def test_files_that_hold_the_same_are_refused(tmp_path, made):
    (tmp_path / "b.csv").write_text("prompt\nred\nblue\n")
    with pytest.raises(InputError, match=r"a\.txt and .*b\.csv hold the same prompts"):
        _ = trained(tmp_path, "a.txt", "b.csv").evaluations.all


def test_the_terminal_names_the_set_of_each_table(tmp_path, made):
    run = trained(tmp_path, "a.txt", "b.csv")
    evaluate(run)
    text = run.evaluations.closing(final="stage1", labels=run.labels)
    assert "a (2 prompts)\n" in text and "b (1 prompts)\n" in text
    assert text.count("stage 1 against base:") == 2
    one = trained(tmp_path, "a.txt")
    assert "prompts)" not in one.evaluations.closing(final="stage1", labels=one.labels)


# ------------------------------------------------------------------ LoRAs of others alone


def test_only_the_base_and_loras_of_others_need_no_pairs(tmp_path, made):
    file = tmp_path / "theirs.safetensors"
    file.write_bytes(b"weights")
    more = ("trainings=[]", f"evaluate.loras={{theirs = '{file}'}}", "run=other")
    run = trained(tmp_path, "a.txt", more=(*more, "metrics.distance=true"))
    assert [s.name for s in run.steps] == ["pairs", "evaluation", "card", "report"]
    assert evaluate(run) == ["a"]
    assert {model for model, _ in made} == {"base", "theirs"}
    table = run.evaluations.tables()[0].table
    assert "cmmd" not in set(table["metric"])  # there are no pairs to compare with
    assert "theirs against base:" in run.evaluations.closing(final="", labels=run.labels)
    card = next(step for step in run.steps if step.name == "card")
    assert card.run().amount == 0
    # A run that makes pairs before it evaluates is built as this one was: before there are any.
    first = trained(tmp_path, "a.txt", more=(*more, "metrics.distance=true"))
    evaluation = next(step for step in first.steps if step.name == "evaluation")
    assert first.evaluation.reference not in evaluation.ledgers()
    first.curation.pairs.begin()
    first.curation.pairs.commit(expected=0, counts={})
    assert first.evaluation.reference in evaluation.ledgers() and not evaluation.done
    assert first.evaluation.metrics.embedding in first.evaluation.measures
    with pytest.raises(InputError, match=r"trainings=\[\]: nothing is to be trained"):
        require_steps_before(run, only=("cache", "start", "trainings"))


# ------------------------------------------------------------------ without a file


def test_a_preset_runs_without_prompts_and_knows_them_after_curation(tmp_path):
    given = [TRAINED, *SETTINGS, f"storage={tmp_path}", "evaluate.prompts=", "evaluate.limit=9"]
    run = Run(load(RunConfig, "tiny", given))
    step = next(step for step in run.steps if step.name == "evaluation")
    assert step.ledgers() == () and not step.done
    assert step_states(run)["evaluation"] == "to do"
    with pytest.raises(InputError, match=r"evaluate\.prompts is needed before"):
        _ = run.evaluation.prompts
    ledger = run.curation.photos
    rows: list[dict[str, object]] = [
        {"id": str(i), "caption": f"a {i}", "status": "not_selected", "reason": "beyond_top_k"}
        for i in range(30)
    ]
    fill(ledger, rows, PHOTOS)
    assert len(run.evaluation.prompts) == 9
    assert step.ledgers()[0].path == f"{tmp_path}/run/evaluation/images/base"


def test_a_redo_replaces_the_default_set_where_it_lies(tmp_path, made):
    """Its ledgers are known only after the curation that the same command does anew."""

    def curated(top_k: int, *, redo: bool) -> Run:
        own = ("evaluate.prompts=", "run=own", f"select.top_k={top_k}")
        run = Run(load(RunConfig, "tiny", [*GIVEN, f"storage={tmp_path}", *own]), redo=redo)
        for ledger in (*run.curation.ledgers, run.cache, run.trained["stage1"]):
            ledger.clear()
            if ledger.path != run.curation.photos.path:
                ledger.begin()
                ledger.commit(expected=0, counts={})
        assert run.evaluations.ledgers == ()
        rows: list[dict[str, object]] = [
            {"id": str(i), "caption": f"{top_k} {i}", "status": "not_selected", "reason": ""}
            for i in range(9)
        ]
        fill(run.curation.photos, rows, PHOTOS)
        steps = [step for step in run.steps if step.name == "evaluation"]
        _take(run, steps, {"steps": {}}, nullcontext, began=0.0, pages=False)
        return run

    table = tmp_path / "own" / "evaluation" / "table.csv"
    curated(20, redo=False).evaluations.tables()
    assert table.is_file()
    run = curated(21, redo=True)
    assert [each.set.at for each in run.evaluations.all] == ["evaluation"]
    assert run.evaluation.complete and not table.is_file()
    assert {prompt.split()[0] for _, prompt in made} == {"20", "21"}
    # The table of a file's prompts stays.
    evaluate(trained(tmp_path, "a.txt"))
    own = ("evaluate.prompts=", f"storage={tmp_path}")
    again = Run(load(RunConfig, "tiny", [*GIVEN, *own]), redo=True)
    again.curation.photos.clear()
    fill(again.curation.photos, [], PHOTOS)
    assert again.evaluation.set.at == "evaluation/held-out"


def test_a_command_records_only_tables_that_it_made(tmp_path, made):
    evaluate(trained(tmp_path, "a.txt"))
    stored: list[str] = []
    tracker: Any = SimpleNamespace(
        artifact=lambda path, *where: stored.append(path.removeprefix(f"{tmp_path}/run/")),
        finish=lambda status: None,
    )
    _store_results(trained(tmp_path, "a.txt"), tracker, steps={"cache", "stage1"})
    assert stored[0] == "config.toml" and not [path for path in stored if "table" in path]

"""Tables as data: what they plan, what their rows share."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
from PIL import Image

from raypref import cli
from raypref.ablate import cost, table
from raypref.ablate.cost import Rates, describe_plan
from raypref.ablate.driver import make, plan_text, tables_of
from raypref.ablate.plan import (
    AblateConfig,
    PlannedRow,
    PlannedStep,
    distinct_steps,
    load_config,
    plan_row,
    planned_rows,
)
from raypref.ablate.sweep import rows_at_once
from raypref.ablate.table import Row, Table
from raypref.core.config import InputError, replaced

ROOT = Path(__file__).parents[1]
PAIRS = (("", 256), ("ours: ", 512), ("", 768), ("", 1024))  # of Figure 8
# Models to train with preset tiny (fyp_tiny for fyp_...) and nothing given: counted by hand.
TRAININGS = {
    "table1a": 3,  # sft; stage 1 and 2
    "table1b": 0,
    "table2": 2,
    "table3": 3,
    "table4": 4,  # both stages on two kinds of pairs
    "table6": 8,
    "figure5": 2,
    "figure8": 8,
    "figure8_civitai": 0,
    "figure10": 0,
    "figure2a": 2,
    "figure2b": 2,  # of SD-3.5-M's family
    "table7b": 0,
    **dict.fromkeys(("figure4", "table5", "table7a", "table8"), 0),  # no runs
    "beta": 6,  # one stage 1, five stage 2
    "margin": 10,
    "lr": 6,
    "rank": 8,
    "steps": 5,
    "profiles": 16,  # ours 2, color 2, on its stage 1 released 1; others 1 or 2 each
    "arena": 9,
    "objectives": 44,
    "families": 19,
    "fyp_rewards": 9,
    "fyp_rewards_real": 12,
    "fyp_candidates": 8,
    "fyp_samples": 8,
    "fyp_bias": 7,
    "fyp_or_real": 5,  # pairs of candidates; three of photographs, one of them with stage 1
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> AblateConfig:
    storage, labels = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("labels") / "l.csv"
    Image.new("RGB", (64, 64)).save(labels.with_name("a.png"))
    labels.write_text("prompt,chosen,rejected,gap\na ball,a.png,a.png,1\n")  # drawing takes minutes
    return load_config("tiny", [f"storage={storage}", f"ablate.labelled={labels}"])


def paths(step: PlannedStep) -> tuple[str, ...]:
    return tuple(ledger.path for ledger in step.step.ledgers())


def trainings(rows: list[PlannedRow]) -> set[tuple[str, ...]]:
    return {paths(step) for step in distinct_steps(rows) if step.trains}


def planned(config: AblateConfig, **row: Any) -> PlannedRow:
    return plan_row("mine", Row.model_validate({"name": "x", **row}), config, seed=config.seed)


def test_the_hand_count_is_of_all_tables():
    assert set(TRAININGS) == set(table.names())


@pytest.fixture(scope="module")
def fyp_tiny(tmp_path_factory: pytest.TempPathFactory) -> AblateConfig:
    return load_config("fyp_tiny", [f"storage={tmp_path_factory.mktemp('runs')}"])


@pytest.mark.parametrize("name", TRAININGS)
def test_a_table_trains_each_distinct_model_once(name, tiny, fyp_tiny):
    tiny = fyp_tiny if name.startswith("fyp_") else tiny
    if name == "figure2b":
        with pytest.raises(InputError, match=r"no row of base\.family=sd15; it has rows of sd35m"):
            plan_text(tables_of(name), tiny)
        tiny = replaced(tiny, {"base.family": "sd35m"})
    rows = planned_rows(name, table.read_table(name), tiny)
    assert all(row.config is not None or not row.given for row in rows), [r.problem for r in rows]
    assert len(trainings(rows)) == TRAININGS[name]
    said = plan_text(tables_of(name), tiny)
    runs = table.read_table(name).shows == "runs"
    told = f"distinct models to train: {TRAININGS[name]}," if runs else f"{name}: no runs; filled"
    assert told in said


def test_all_tables_of_the_paper_share_the_base_ours_and_stage_1(tiny):
    rows = [row for name, own in tables_of("all").items() for row in planned_rows(name, own, tiny)]
    of_paper = {n for n in TRAININGS if n[:5] in ("table", "figur")}
    of_runs = {n for n in of_paper if table.read_table(n).shows == "runs"}
    assert {row.table for row in rows} == of_runs - {"figure2b"}
    assert {*tables_of("all")} == of_paper
    # Ours (2), stage 2 alone, SFT; two of table 4's; six of table 6's; six of figure 8's.
    assert len(trainings(rows)) == 2 + 1 + 1 + 2 + 6 + 6
    ours = {
        tuple(ledger.path for ledger in row.steps[-1].ledgers())
        for row in rows
        if row.row.name == "stage2" and row.config and row.table != "figure2a"  # other rewards
    }
    assert len(ours) == 1


def test_a_figure_has_the_rows_that_the_paper_has_for_the_base_model(tiny):
    figure = table.read_table("figure5")
    of = {
        family: [row.row.name for row in planned_rows("figure5", figure, config)]
        for family, config in (
            ("sd15", tiny),
            ("sd35m", replaced(tiny, {"base.family": "sd35m"})),
        )
    }
    assert of["sd15"] == ["base", "spo", "diffusion_dpo", "stage2", "diffusion_dpo_both"]
    assert of["sd35m"] == ["base", "diffusion_dpo", "flowgrpo", "stage2", "flowgrpo_both"]


def test_what_is_missing_for_a_row_is_named(tiny):
    rows = {row.row.name: row for row in planned_rows("table2", table.read_table("table2"), tiny)}
    assert rows["civitai"].problem == "not given: add ablate.civitai=..."
    assert not rows["civitai"].given
    labels = [row.label for row in planned_rows("x", table.read_table("figure8_civitai"), tiny)]
    assert labels == [
        "base",
        *(f"{before}{n * 96 // 512} pairs (paper: {n})" for before, n in PAIRS),
    ]
    assert rows["stage2"].given


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_table_without_prompts_is_refused_in_one_line(tmp_path, capsys, flags):
    words = [f"source.path={tmp_path}", f"storage={tmp_path}/runs", *flags]
    assert cli.console(["ablate", "table3", "sd15", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "evaluate.prompts=FILE" in line
    assert not (tmp_path / "runs").exists()


def test_sd15_plans_the_papers_figures(tmp_path):
    (tmp_path / "photo.png").touch()
    (tmp_path / "photo.txt").write_text("a photo")
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    given = [f"source.path={tmp_path}", f"evaluate.prompts={tmp_path}/prompts.txt"]
    sd15 = load_config("sd15", [*given, f"storage={tmp_path}/runs", "ablate.diffusion_dpo=a/b"])
    labels = [row.label for row in planned_rows("figure8", table.read_table("figure8"), sd15)]
    assert labels == [
        "base",
        *(f"{before}{n} pairs (paper: {n})" for before, n in PAIRS),
    ]
    for name in TRAININGS:
        for row in planned_rows(name, table.read_table(name), sd15):
            assert row.config or not row.given, row.problem
    dpo = planned_rows("figure5", table.read_table("figure5"), sd15)[2]
    assert dpo.config
    assert dpo.config.base.network == "a/b"


# One key of a row, and the first step that it changes.
@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("table.resamples", 500, None),
        ("train.stage1.resources.workers", 1, None),
        ("evaluate.steps", 3, "evaluation"),
        ("train.stage2.beta", 7.0, "stage2"),
        ("train.stage1.lr", 1e-3, "stage1"),
        ("lora.rank", 2, "stage1"),
        ("select.top_k", 5, "pairs"),
        ("perturb.steps", 3, "pairs"),
    ],
)
def test_a_changed_key_changes_what_depends_on_it(key, value, first, tiny):
    before, after = planned(tiny), planned(tiny, set={key: value})
    names = [step.name for step in before.steps]
    assert names == ["pairs", "cache", "stage1", "stage2", "evaluation"]
    same = [
        old.name
        for old, new in zip(before.steps, after.steps, strict=True)
        if [ledger.path for ledger in old.ledgers()] == [ledger.path for ledger in new.ledgers()]
    ]
    assert same == names[: names.index(first)] if first else same == names


def test_more_pairs_are_found_among_the_same_twins(tiny):
    few, many = planned(tiny).run.curation, planned(tiny, set={"select.top_k": 5}).run.curation
    assert few.twins.path == many.twins.path
    assert few.pairs.path != many.pairs.path


def test_the_base_models_images_are_the_same_for_all_rows(tiny):
    one, other = planned(tiny), planned(tiny, set={"train.stage2.beta": 7.0})
    images = [row.run.evaluation.images.ledgers for row in (one, other)]
    assert images[0]["base"].path == images[1]["base"].path
    assert images[0]["stage2"].path != images[1]["stage2"].path


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"set": {"train.stage2.betta": 1}},
            "unknown key 'train.stage2.betta'; the nearest known key is",
        ),
        (
            {"set": {"train.stage2.beta": -1}},
            "train.stage2.beta=-1: input should be greater than 0",
        ),
        ({"times": {"run": 2}}, "times: 'run' is not a number"),
        ({"times": {"stage1.steps": 2}}, "'stage1.steps' is 'train.stage1.steps' now"),
        ({"copy": {"base.model": "no.such"}}, "copy: there is no setting 'no.such'"),
        ({"model": "stage7"}, "model=stage7: the models of the run are base, stage1"),
        ({"set": {"evaluate.prompts": "/no/file.txt"}}, "/no/file.txt"),
        (
            {"set": {"evaluate.loras": {"a": "/none"}}},
            "evaluate.loras.a: no folder or file '/none'",
        ),
    ],
)
def test_an_impossible_row_is_planned_with_its_reason(row, reason, tiny):
    found = planned(tiny, **row)
    assert found.config is None
    assert reason in found.problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title = 'x'", "there are no rows"),
        ("title = 'x'\n[[rows]]\nlabel = 'no name'", "every row needs a name"),
        ("title = 'x'\n[[rows]]\nname = 'a'\n[[rows]]\nname = 'a'", "every row needs a name"),
        ("title = 'x'\nrow = 1", "unknown key 'row'; the nearest known key is 'rows'"),
        (
            "title = 'x'\n[[rows]]\nname = 'a'\nfamilies = ['sd35']",
            "there are sd15, sd15_inpaint, sd35m",
        ),
        (
            "title = 'x'\n[[rows]]\nname = 'a'\n[[claims]]\nsays = 'c'\ncontrast = {b = 1}",
            "claims name unknown rows: ['b']",
        ),
        ("title = ", "not valid TOML"),
    ],
)
def test_a_wrong_table_file_is_one_line_with_the_fix(text, reason, tmp_path):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(InputError, match=re.escape(reason)):
        table.read_table(str(tmp_path / "t.toml"))


def test_an_unknown_table_names_those_there_are():
    with pytest.raises(
        InputError, match=r"tables are: arena, beta, families, figure10, .*table8, all"
    ):
        table.read_table("table9")


def test_seeds_repeat_what_is_trained(tiny):
    three = load_config("tiny", [f"storage={tiny.storage}", "ablate.seeds=3"])
    rows = planned_rows("table3", table.read_table("table3"), three)
    assert len(rows) == 1 + 3 * 3
    assert len(trainings(rows)) == 3 * 3
    assert {row.seed for row in rows} == {0, 1, 2}
    # From the same pairs, which are made and encoded once.
    steps = [step.step.name for step in distinct_steps(rows)]
    assert (steps.count("pairs"), steps.count("cache")) == (1, 1)


@pytest.mark.parametrize("number", [0, 1])
def test_the_tables_in_the_docs_are_tables(number, tiny, tmp_path):
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/ablations.md").read_text(), re.DOTALL)
    (tmp_path / "t.toml").write_text(blocks[number])
    own = table.read_table(str(tmp_path / "t.toml"))
    assert all(row.config for row in planned_rows("t", own, tiny))


def test_estimates_come_from_what_was_measured(tiny, tmp_path):
    config = load_config("tiny", [f"storage={tmp_path}"])
    row = plan_row("mine", Row(name="x"), config, seed=0)
    steps = {step.step.name: step for step in distinct_steps([row])}
    assert Rates(str(tmp_path)).cost(steps["stage1"]) is None
    told = {"seconds": 40.0, "amount": 20, "bytes": 1000}
    folder = tmp_path / "earlier" / "table" / "row"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"steps": {"stage1": told}}))
    (folder / "config.toml").write_text(
        '[base]\nmodel = "tiny:sd15"\n[train.stage1]\nbatch = 8\nresources = {workers = 2}\n'
    )
    # Twice the samples per step, four times the steps: 40 s became 320 s.
    cost = Rates(str(tmp_path)).cost(steps["stage1"])
    assert cost
    assert (cost.seconds, cost.gpus, cost.bytes) == (320.0, 0.0, 8000.0)
    assert Rates(str(tmp_path)).cost(steps["stage2"]) is None
    # Said in the plan, with a sum that says that it is not all.
    said = describe_plan([row], Rates(str(tmp_path)))
    assert re.search(r"^stage1 +1 +0 +5 min 20 s +0  0 MiB$", said, re.MULTILINE)
    assert re.search(
        r"^stage2 +1 +0 +not measured +not measured  not measured$", said, re.MULTILINE
    )
    assert re.search(r"^all +\d +0 +5 min 20 s \+ +0 \+  0 MiB \+$", said, re.MULTILINE)
    assert f"no run in {tmp_path} did such a step" in said
    # A record of an earlier version, whose `train` was a list, is left out.
    (folder / "config.toml").write_text('train = ["stage1"]\n[stage1]\nbatch = 8\n')
    assert Rates(str(tmp_path)).cost(steps["stage1"]) is None


def test_photographs_that_a_run_counted_are_not_counted_again(tmp_path):
    """Curation of a whole run in the storage says how long that of a table takes."""
    told = {"pairs": {"seconds": 30.0, "amount": 300, "bytes": 600}}
    photos, folder = tmp_path / "photos", tmp_path / "runs" / "run"
    for each in (photos, folder):
        each.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(photos / "a.png")
    (photos / "a.txt").write_text("a square")
    (folder / "run.json").write_text(json.dumps({"steps": told}))
    words = [f"storage={tmp_path}/runs", f"source.path={photos}"]
    row = plan_row("mine", Row(name="x"), load_config("tiny", words), seed=0)
    (pairs,) = [step for step in distinct_steps([row]) if step.step.name == "pairs"]
    settings = '[base]\nmodel = "tiny:sd15"\n[source]\npath = '
    (folder / "config.toml").write_text(f'{settings}"elsewhere/"\n')
    assert Rates(f"{tmp_path}/runs").cost(pairs) is None
    (folder / "config.toml").write_text(f'{settings}"{photos}"\n')
    cost = Rates(f"{tmp_path}/runs").cost(pairs)
    assert cost and (cost.seconds, cost.bytes) == (30.0, 600.0)


def test_records_in_an_object_store_are_looked_for_without_double_slashes(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    looked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "read_bytes", looked.append)
        Rates(f"file://{tmp_path}")
    assert looked == [f"file://{tmp_path}/run/run.json"]


def test_what_a_table_asks_of_the_settings_is_seen_before_any_work(tiny):
    rows = [{"name": "base", "model": "base"}]
    wrong = Table.model_validate({"title": "T", "rows": rows, "x": "base.model"})
    with pytest.raises(InputError, match=r"mine: x: 'base\.model' is not a number"):
        plan_text({"mine": wrong}, tiny)
    space = {"train.stage2.beta": [1.0]}
    search = Table.model_validate({"title": "T", "search": {"space": space, "metric": "hpsv9"}})
    with pytest.raises(InputError, match=r"search\.metric='hpsv9' is not measured .*pickscore"):
        make({"mine": search}, tiny)


def test_rows_at_once_look_at_the_pools_of_rewards_too(monkeypatch, tmp_path):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 4.0})
    words = [f"storage={tmp_path}", "ablate.at_once=8", "metrics.rewards=pickscore,clipscore"]
    for workers, at_once in ((1, 8), (8, 2)):
        pool = f"rewards.clipscore.resources.workers={workers}"
        config = load_config("tiny", [*words, pool])
        assert rows_at_once(config, []) == at_once

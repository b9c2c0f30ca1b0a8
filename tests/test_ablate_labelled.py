"""The tables on labelled pairs: which data their rows get, and that no objective is left out."""

from pathlib import Path

import pytest
from PIL import Image
from training import OFFLINE

from raypref.ablate import table
from raypref.ablate.driver import tables_of
from raypref.ablate.plan import AblateConfig, load_config, planned_rows
from raypref.ablate.table import Table

OTHERS = {"dro", "capo"}  # the one learns from its own samples all along, the other from candidates


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled pairs of two generators, as a stranger's file."""
    folder = tmp_path_factory.mktemp("labels")
    lines = ["prompt,chosen,rejected,chosen_model,rejected_model,gap"]
    for number in range(2):
        for side in ("a", "b"):
            Image.new("RGB", (64, 64), (90 * number, 50, 20 * ord(side) % 255)).save(
                folder / f"{side}{number}.png"
            )
        lines.append(f"a red ball {number},a{number}.png,b{number}.png,a,b,1.5")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def tiny(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> AblateConfig:
    storage = tmp_path_factory.mktemp("runs")
    return load_config("tiny", [f"storage={storage}", f"ablate.labelled={labels}"])


def test_embedded_models_have_embedded_labels_and_others_are_asked_for(tmp_path):
    assert load_config("tiny", []).ablate.labelled == "tiny:labelled"
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    given = [f"source.path={tmp_path}", f"evaluate.prompts={tmp_path}/prompts.txt"]
    sd15 = load_config("sd15", [*given, f"storage={tmp_path}/runs"])
    rows = planned_rows("arena", table.read_table("arena"), sd15)
    assert {row.problem for row in rows} == {"not given: add ablate.labelled=..."}


def test_settings_of_the_table_count_for_every_row_and_a_rows_own_count_more():
    made = Table.model_validate(
        {
            "title": "t",
            "set": {"lora.rank": 2, "lora.alpha": 3.0},
            "times": {"evaluate.steps": 2},
            "copy": {"seed": "training_seed"},
            "rows": [
                {"name": "a", "set": {"lora.rank": 7, "evaluate.steps": 3}},
                {"name": "b", "copy": {"seed": "lora.rank"}, "times": {"lora.rank": 4}},
            ],
            "grid": {"select.top_k": [5]},
        }
    )
    alpha, twice, seed = {"lora.alpha": 3.0}, {"evaluate.steps": 2}, {"seed": "training_seed"}
    assert [(row.set_, row.times, row.copy_) for row in made.all_rows()] == [
        (alpha | {"lora.rank": 7, "evaluate.steps": 3}, {}, seed),
        (alpha, twice | {"lora.rank": 4}, {"seed": "lora.rank"}),
        (alpha | {"lora.rank": 2, "select.top_k": 5}, twice, seed),
    ]


@pytest.mark.parametrize("name", ["arena", "objectives"])
def test_every_row_can_be_planned_and_trains_on_the_labels(name, tiny, labels):
    for row in planned_rows(name, table.read_table(name), tiny):
        assert row.config, f"{row.name}: {row.problem}"
        assert row.config.source.path == str(labels)
        assert row.config.pairs.kind == "labelled"
        assert [step.name for step in row.steps][-1] == "evaluation"


def test_rows_of_the_arena_share_pairs_where_gaps_are_the_same(tiny):
    rows = {row.row.name: row for row in planned_rows("arena", table.read_table("arena"), tiny)}
    pairs = {name: row.run.alignment.pairs.path for name, row in rows.items()}
    arena = {pairs[name] for name in ("dpo", "fixed", "margin", "weight", "regression")}
    assert len(arena) == 1
    assert pairs["oracle"] == pairs["oracle_weight"] not in arena
    assert pairs["shuffled"] == pairs["shuffled_weight"] not in {*arena, pairs["oracle"]}


def test_all_offline_objectives_are_trained_with_right_and_with_flipped_labels(tiny):
    rows = [
        row.config
        for row in planned_rows("objectives", table.read_table("objectives"), tiny)
        if row.config and row.model != "base"
    ]
    for flips in (0.0, 0.25):
        trained = {
            row.train["stage2_alone"].objective for row in rows if row.pairs.flip_labels == flips
        }
        assert trained == {*OFFLINE} - OTHERS


def test_a_row_and_its_flipped_twin_differ_in_the_labels_alone(tiny):
    listed = {row.name: row for row in table.read_table("objectives").all_rows()}
    for name, row in listed.items():
        if name == "base" or name.endswith("_flipped"):
            continue
        twin = listed[f"{name}_flipped"]
        assert twin.set_ == row.set_ | {"pairs.flip_labels": 0.25}
        assert (twin.times, twin.copy_, twin.model) == (row.times, row.copy_, row.model)


def test_all_runs_the_papers_tables_alone():
    assert not {"arena", "objectives", "families"} & tables_of("all").keys()

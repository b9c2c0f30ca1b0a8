"""Which trainings run, in which order and from where; what is refused before any work."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from corpus import encode, scene

from raypref.align import trainings
from raypref.align.check import check_pairs
from raypref.align.stage import StageConfig
from raypref.config import InputError, load
from raypref.evaluate.tables import model_label
from raypref.execute import ALIGN, execute
from raypref.ledger import Ledger
from raypref.pipeline import Run, RunConfig

ONE, TWO, SFT = (
    StageConfig(objective="dro"),
    StageConfig(start="stage1", steps=7),
    StageConfig(objective="sft"),
)


def settle(*train: str, **starts: str) -> dict[str, StageConfig]:
    sections = {"stage1": ONE, "stage2": TWO, "sft": SFT}
    for name, start in starts.items():
        sections[name] = sections[name].model_copy(update={"start": start})
    return trainings.settle(train, **sections)  # type: ignore[arg-type]


def run(tmp_path: Path, *overrides: str) -> Run:
    return Run(load(RunConfig, "tiny", [f"storage={tmp_path}", *overrides]))


@pytest.mark.parametrize(
    "train, starts, labels, final",
    [
        (["stage1"], {}, ["stage 1"], "stage1"),
        (["stage1", "stage2"], {}, ["stage 1", "stage 1 + stage 2"], "stage2"),
        (["stage2_alone"], {}, ["stage 2 alone"], "stage2_alone"),
        (["stage2"], {"stage2": "base"}, ["stage 2"], "stage2"),
        (["sft"], {}, ["SFT"], "sft"),
        (["sft", "stage2"], {"stage2": "sft"}, ["SFT", "SFT + stage 2"], "stage2"),
        (["stage1", "sft"], {}, ["stage 1", "SFT"], "stage1"),
    ],
)
def test_a_configuration_is_a_choice_of_trainings(train, starts, labels, final):
    settled = settle(*train, **starts)
    assert list(settled) == train
    assert [model_label(trainings.shown_as(name, settled)) for name in settled] == labels
    assert trainings.final(settled) == final


def test_stage_2_alone_is_stage_2_from_where_stage_1_starts():
    for start in ("base", "me/lora"):
        alone = settle("stage2_alone", stage1=start)["stage2_alone"]
        assert alone == TWO.model_copy(update={"start": start})


def test_a_lineage_leads_back_to_the_first():
    settled = settle("sft", "stage1", "stage2", stage1="sft")
    assert trainings.lineage("stage2", settled) == ["sft", "stage1", "stage2"]
    assert trainings.lineage("sft", settled) == ["sft"]


@pytest.mark.parametrize(
    "train, starts, message",
    [
        (["stage2"], {}, "stage2.start=stage1: stage1 must stand before stage2"),
        (["stage2", "stage1"], {}, "stage1 must stand before stage2"),
        (["stage1"], {"stage1": "stage1"}, "stage1 must stand before stage1"),
        (["stage1"], {"stage1": "stage9"}, "stage1.start='stage9' is neither base, nor one of"),
        (["stage2_alone"], {"stage1": "nothing"}, "stage1.start='nothing' is neither base"),
        (["stage1", "stage1"], {}, "stage1 may stand once"),
    ],
)
def test_a_start_that_is_not_there_is_refused(train, starts, message):
    with pytest.raises(InputError) as caught:
        settle(*train, **starts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_training_is_refused():
    with pytest.raises(InputError, match="train"):
        load(RunConfig, "tiny", ['train=["stage3"]'])
    with pytest.raises(InputError, match="train"):
        load(RunConfig, "tiny", ["train=[]"])


@pytest.mark.parametrize(
    "overrides, steps, models",
    [
        ([], "stage1 stage2 stage2_alone", "stage1 both stage2_alone"),
        (['train=["stage1"]'], "stage1", "stage1"),
        (['train=["sft", "stage1"]'], "sft stage1", "sft stage1"),
        (['train=["stage2"]', "stage2.start=base"], "stage2", "stage2"),
        (
            ['train=["stage1", "stage2"]', "stage1.start=some/lora"],
            "start stage1 stage2",
            "start stage1 both",
        ),
        (
            ['train=["stage1", "sft"]', "stage1.start=some/lora", "sft.start=other/lora"],
            "start stage1 sft",
            "start start_2 stage1 sft",
        ),
        (['train=["stage1"]', "model.fused=true"], "stage1", "stage1"),
    ],
)
def test_a_run_has_the_steps_and_models_asked_for(tmp_path, overrides, steps, models):
    made = run(tmp_path, *overrides)
    names = [step.name for step in made.steps]
    closing = ["evaluation", *(["fused"] if overrides[-1:] == ["model.fused=true"] else [])]
    assert names == ["pairs", "cache", *steps.split(), *closing, "card", "report"]
    assert list(made.evaluation.loras) == models.split()


def test_a_training_is_stale_when_what_it_continues_changes(tmp_path):
    def fingerprints(*overrides: str) -> dict[str, str]:
        made = run(tmp_path, 'train=["stage1", "stage2", "stage2_alone"]', *overrides)
        return {name: ledger.fingerprint for name, ledger in made.trained.items()}

    before, after = fingerprints(), fingerprints("stage1.lr=1e-3")
    assert before["stage1"] != after["stage1"]
    assert before["stage2"] != after["stage2"]
    assert before["stage2_alone"] == after["stage2_alone"]
    assert fingerprints('train=["stage1", "stage2", "stage2_alone", "sft"]').items() >= (
        before.items()
    )


@pytest.mark.parametrize("workers", [0, 5])
def test_more_workers_than_samples_are_refused_and_an_uneven_split_is_not(tmp_path, workers):
    def refusals(*overrides: str) -> list[str]:
        found = []
        for step in run(tmp_path, 'train=["stage1"]', *overrides).steps:
            for need in step.needs:
                try:
                    need()
                except InputError as error:
                    found.append(str(error))
        return found

    [message] = refusals("stage1.batch=4", f"stage1.resources.workers={workers}")
    assert f"stage1.resources.workers={workers}" in message
    assert "1 to stage1.batch=4" in message
    assert refusals("stage1.batch=4", "stage1.resources.workers=3") == []


# ------------------------------------------------------------------ the pairs


def pairs(folder: Path, sizes: list[tuple[int, int]]) -> Ledger:
    ledger = Ledger(str(folder), {})
    rows: list[dict[str, Any]] = []
    for number, size in enumerate(sizes):
        image = {"bytes": encode(scene(number).resize(size), "PNG"), "path": "x.png"}
        rows.append({"id": f"pair-{number}", "chosen": image, "rejected": image})
    ledger.begin()
    if rows:
        ledger.write_part(pa.Table.from_pylist(rows))
    ledger.commit(expected=len(rows), counts={})
    return ledger


def test_pairs_of_one_size_pass(tmp_path):
    check_pairs(pairs(tmp_path, [(64, 64)] * 3), side=64)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ([], "holds no pairs"),
        ([(64, 64), (32, 32)], "chosen image of pair 'pair-1' is 32x32, and images.size=64"),
        ([(64, 48)], "is 64x48, and images.size=64"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_refused(tmp_path, sizes, message):
    with pytest.raises(InputError) as caught:
        check_pairs(pairs(tmp_path, sizes), side=64)
    assert message in str(caught.value)


def test_pairs_made_at_another_resolution_are_refused_by_name(tmp_path):
    for ledger in run(tmp_path).curation.ledgers:
        ledger.begin()
        ledger.commit(expected=0, counts={})
    with pytest.raises(InputError) as caught:
        execute(load(RunConfig, "tiny", [f"storage={tmp_path}", "images.size=32"]), only=ALIGN)
    assert "images.size: 64 -> 32" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_win_rates_against_a_model_that_is_not_there_are_refused(tmp_path):
    overrides = ('train=["stage1"]', "table.baseline=both")
    [evaluation] = [s for s in run(tmp_path, *overrides).steps if s.name == "evaluation"]
    with pytest.raises(InputError, match=r"table\.baseline=both: the models are base, stage1"):
        for need in evaluation.needs:
            need()

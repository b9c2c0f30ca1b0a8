"""Which trainings run, in which order and from where; what is refused before any work."""

import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from corpus import encode, scene

from raypref.align import plan
from raypref.align.check import check_pairs
from raypref.align.config import TrainingConfig
from raypref.align.latents import CacheConfig, Encode, Images
from raypref.align.objectives.arena import ArenaPO, FixedMargin
from raypref.align.objectives.registry import OBJECTIVES
from raypref.core.config import InputError, build, flatten, load, replaced, results_of, to_toml
from raypref.core.ledger import Ledger
from raypref.models.backbone import BackboneConfig
from raypref.run.config import RunConfig
from raypref.run.execute import ALIGN, execute
from raypref.run.pipeline import Run


def settle(*names: str, **starts: str) -> dict[str, TrainingConfig]:
    """The trainings of a run, some of them with other starts."""
    given = ["source.path=p", *(f"train.{name}.start={start}" for name, start in starts.items())]
    return plan.in_order(names, load(RunConfig, "tiny", given).train)


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
        (["stage1", "sft"], {}, ["stage 1", "SFT"], "sft"),
    ],
)
def test_a_configuration_is_a_choice_of_trainings(train, starts, labels, final):
    settled = settle(*train, **starts)
    assert list(settled) == train
    assert [plan.label(name, settled) for name in settled] == labels
    assert plan.final(settled) == final


def test_stage_2_alone_is_stage_2_from_where_stage_1_starts():
    own = {"start", "like", "label"}
    for start in ("base", "me/lora"):
        made = settle("stage1", "stage2", "stage2_alone", stage1=start)
        one, other = (made[name].model_dump(exclude=own) for name in ("stage2", "stage2_alone"))
        assert one == other
        assert made["stage2_alone"].start == start


def test_what_one_training_says_another_takes_over_unless_it_says_so_itself():
    config = load(RunConfig, "tiny", ["train.stage2.beta=7", "train.stage2_alone.lr=0.5"])
    for made in (config, build(RunConfig, tomllib.loads(to_toml(config)))):
        alone = made.train["stage2_alone"]
        assert (alone.beta, alone.lr, alone.steps) == (7.0, 0.5, 80)
        later = replaced(made, {"train.stage2.beta": 9.0, "train.stage2.lr": 0.25})
        assert (later.train["stage2_alone"].beta, later.train["stage2_alone"].lr) == (9.0, 0.5)
    with pytest.raises(InputError, match=r"^train\.a\.like='b' is not another training$"):
        load(RunConfig, "tiny", ["train.a.like=b"])
    with pytest.raises(InputError, match="is not another training"):
        load(RunConfig, "tiny", ["train.a.like=b", "train.b.like=a"])


@pytest.mark.parametrize(
    "given",
    [
        ["train.stage2_alone.start=stage1"],
        ["train.stage2_alone.draws="],
        ["train.stage2.like=stage1", "train.stage2.lr=1e-4", "train.stage2.objective=dro"],
        ["train.stage2_alone.lr=1e-4"],  # what stage2 has too
        ["train.mine.like=stage2_alone", "train.mine.beta=5"],
    ],
)
def test_what_a_run_writes_down_and_what_a_table_changes_keep_the_rest(given):
    made = load(RunConfig, "tiny", given)
    for again in (build(RunConfig, tomllib.loads(to_toml(made))), replaced(made, {"seed": 0})):
        assert flatten(again) == flatten(made)
    other = replaced(made, {"train.stage2.lr": 0.25}).train["stage2_alone"]
    assert other.lr == (1e-4 if "train.stage2_alone.lr=1e-4" in given else 0.25)


@pytest.mark.parametrize(
    "facts, curriculum, reads",
    [
        (("votes",), "off", "objective=dpo reads votes"),
        ((), "easy_first", "curriculum=easy_first reads gap_of_these"),
    ],
)
def test_a_table_that_reads_a_fact_the_pairs_lack_is_refused_before_any_work(
    facts, curriculum, reads, tmp_path, monkeypatch
):
    kind = OBJECTIVES["dpo"]
    monkeypatch.setattr(kind, "facts", facts)
    if not facts:  # whatever columns pairs will have
        monkeypatch.setattr(kind, "columns", ("gap_of_these",))
    steps = run(tmp_path, f"train.stage2.curriculum={curriculum}").steps
    needs = [need for step in steps if step.name == "stage2" for need in step.needs]
    with pytest.raises(InputError, match=rf"^train\.stage2\.{reads} of the pairs"):
        for need in needs:
            need()


@pytest.mark.parametrize(
    "given, says",
    [
        ("train.start_2.objective=dpo", "train.start_2: the name becomes a folder of the run"),
        ("train.stage1.objective=[1]", "train.stage1.objective=[1]: use dro, dpo"),
        ("train.stage2.margin=-1", "train.stage2.margin is a setting of the objective dro, and "),
        ("train.stage1.beta=1", "train.stage1.beta is a setting of the objective dpo, ipo, hinge"),
        ("train.stage2.bta=1", "unknown key 'train.stage2.bta'; the nearest known key is 'train.s"),
        ("train.mine.lr=1", "train.mine.objective is required: one of dro, dpo, ipo"),
        ("train.pairs.objective=dpo", "train.pairs: the name becomes a folder of the run"),
        ("stage2.beta=1", "'stage2.beta' is 'train.stage2.beta' now"),
        ("stage1.resources.workers=1", "'stage1.resources.workers' is 'train.stage1.resources.wor"),
        ('train=["sft"]', "train=['sft']: the trainings of a run are listed in 'trainings' now"),
    ],
)
def test_a_key_that_a_training_has_not_is_refused_in_one_line(given, says):
    with pytest.raises(InputError) as caught:
        load(RunConfig, "tiny", [given])
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_another_objective_leaves_out_what_only_the_old_one_has():
    """The preset gives stage 1 rollout_steps, which is a setting of dro alone."""
    made = load(RunConfig, "tiny", ["train.stage1.objective=dpo"]).train["stage1"]
    assert (made.objective, made.steps, made.beta) == ("dpo", 80, 2000.0)
    assert not hasattr(made, "rollout_steps")


def test_what_an_objective_ignores_is_in_no_fingerprint():
    """Every setting that decides the result is one that the objective has."""
    config = load(RunConfig, "tiny")
    for training in config.train.values():
        assert set(results_of({"": training})) <= {f".{key}" for key in flatten(training)}
    assert "margin" not in flatten(config.train["stage2"])
    assert "beta" not in flatten(config.train["stage1"])


def test_a_training_of_ones_own_has_name_order_and_label(tmp_path):
    own = [
        *('train.a.objective="ipo"', "train.a.start=b", 'train.a.label="IPO"'),
        *("train.b.objective=sft", "train.b.start=@stage1", 'trainings=["a"]'),
    ]
    made = run(tmp_path, *own)
    assert list(made.alignment.trainings) == ["b", "a"]
    assert made.labels == {"base": "base", "b": "b", "a": "b + IPO"}
    assert made.alignment.final == "a"
    assert made.alignment.jobs["a"].start == made.trained["b"].path
    assert [job.draws for job in made.alignment.jobs.values()] == ["b", "a"]


def test_a_lineage_leads_back_to_the_first():
    settled = settle("sft", "stage1", "stage2", stage1="sft")
    assert plan.lineage("stage2", settled) == ["sft", "stage1", "stage2"]
    assert plan.lineage("sft", settled) == ["sft"]


@pytest.mark.parametrize(
    "train, starts, message",
    [
        (["stage1"], {"stage1": "stage1"}, "train.stage1.start=stage1: it would start from itself"),
        (["stage1"], {"stage1": "sft", "sft": "stage1"}, "it would start from itself"),
        (["stage1"], {"stage1": "@stage1"}, "train.stage1.start=@stage1: no such training"),
        (["stage1"], {"stage1": "@stage9"}, "train.stage1.start=@stage9: no such training"),
        (
            ["stage1"],
            {"stage1": "stage9"},
            "train.stage1.start='stage9' is neither base, nor one of",
        ),
        (["stage2_alone"], {"stage1": "nothing"}, "train.stage2_alone.start='nothing' is neither"),
        (["stage1", "stage1"], {}, "stage1 is listed twice"),
    ],
)
def test_a_start_that_is_not_there_is_refused(train, starts, message):
    with pytest.raises(InputError) as caught:
        settle(*train, **starts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_training_is_refused():
    with pytest.raises(
        InputError, match="no training or objective stage3; the nearest are stage2, stage1"
    ):
        settle("stage3")


@pytest.mark.parametrize(
    "overrides, steps, models",
    [
        ([], "stage1 stage2 stage2_alone", "stage1 stage2_alone stage2"),
        (['trainings=["stage1"]'], "stage1", "stage1"),
        (['trainings=["sft", "stage1"]'], "sft stage1", "sft stage1"),
        (['trainings=["stage2"]', "train.stage2.start=base"], "stage2", "stage2"),
        (
            ['trainings=["stage1", "stage2"]', "train.stage1.start=some/lora"],
            "start stage1 stage2",
            "start stage1 stage2",
        ),
        (
            [
                'trainings=["stage1", "sft"]',
                "train.stage1.start=some/lora",
                "train.sft.start=other/lora",
            ],
            "start stage1 sft",
            "start start_2 stage1 sft",
        ),
        (['trainings=["stage1"]', "model.fused=true"], "stage1", "stage1"),
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
        made = run(tmp_path, 'trainings=["stage1", "stage2", "stage2_alone"]', *overrides)
        return {name: ledger.fingerprint for name, ledger in made.trained.items()}

    before, after = fingerprints(), fingerprints("train.stage1.lr=1e-3")
    assert before["stage1"] != after["stage1"]
    assert before["stage2"] != after["stage2"]
    assert before["stage2_alone"] == after["stage2_alone"]
    assert fingerprints('trainings=["stage1", "stage2", "stage2_alone", "sft"]').items() >= (
        before.items()
    )


@pytest.mark.parametrize("workers", [0, 5])
def test_more_workers_than_samples_are_refused_and_an_uneven_split_is_not(tmp_path, workers):
    def refusals(*overrides: str) -> list[str]:
        found = []
        for step in run(tmp_path, 'trainings=["stage1"]', *overrides).steps:
            for need in step.needs:
                try:
                    need()
                except InputError as error:
                    found.append(str(error))
        return found

    [message] = refusals("train.stage1.batch=4", f"train.stage1.resources.workers={workers}")
    assert f"train.stage1.resources.workers={workers}" in message
    assert "1 to train.stage1.batch=4" in message
    assert refusals("train.stage1.batch=4", "train.stage1.resources.workers=3") == []
    two = ["train.stage1.batch=6", "train.stage1.rollout_stops=2"]
    [message] = refusals(*two, "train.stage1.resources.workers=4")
    assert "1 to half of train.stage1.batch=6" in message
    [message] = refusals("train.stage1.resources.num_gpus=0.5")
    assert "train.stage1.resources.num_gpus=0.5: a training's worker takes whole GPUs" in message


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
    made = pairs(tmp_path, [(64, 64)] * 3)
    check_pairs(made, trainings={})
    assert len(prepared(made, side=64).images) == 12  # two sides, both ways


def prepared(made: Ledger, *, side: int) -> Images:
    """What a worker makes of the pairs before it encodes them."""
    rows = [{**row, "prompt": ""} for row in made.rows()]
    return Encode(BackboneConfig(), CacheConfig(), side=side).prepare(rows)


def test_pairs_without_a_number_that_a_training_reads_are_refused_by_its_name(tmp_path):
    made = pairs(tmp_path, [(64, 64)] * 3)
    columns = made.table().append_column("gap", pa.array([1.0, None, None]))
    made.clear()
    made.begin()
    made.write_part(columns)
    made.commit(expected=3, counts={})
    with pytest.raises(InputError) as caught:
        check_pairs(made, trainings={"mine": ArenaPO(steps=1)})
    assert str(caught.value) == (
        "train.mine.objective=arena reads gap of the pairs, and 2 of 3 have none; a gap needs "
        "labels that name both generators"
    )
    check_pairs(made, trainings={"mine": FixedMargin(steps=1)})


@pytest.mark.parametrize(
    "sizes, message",
    [
        ([(64, 64), (32, 32)], "chosen image of pair 'pair-1' is 32x32, and images.size=64"),
        ([(64, 48)], "is 64x48, and images.size=64"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_refused(tmp_path, sizes, message):
    with pytest.raises(InputError) as caught:
        prepared(pairs(tmp_path, sizes), side=64)
    assert message in str(caught.value)


def test_no_pairs_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no pairs"):
        check_pairs(pairs(tmp_path, []), trainings={})


def test_pairs_made_at_another_resolution_are_refused_by_name(tmp_path):
    for ledger in run(tmp_path).curation.ledgers:
        ledger.begin()
        ledger.commit(expected=0, counts={})
    with pytest.raises(InputError) as caught:
        execute(load(RunConfig, "tiny", [f"storage={tmp_path}", "images.size=32"]), only=ALIGN)
    assert "images.size: 64 -> 32" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_win_rates_against_a_model_that_is_not_there_are_refused(tmp_path):
    overrides = ('trainings=["stage1"]', "table.baseline=both")
    [evaluation] = [s for s in run(tmp_path, *overrides).steps if s.name == "evaluation"]
    with pytest.raises(InputError, match=r"table\.baseline=both: the models are base, stage1"):
        for need in evaluation.needs:
            need()

"""Trainings that their settings or the scores of images rule out, refused before any work."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from training import training

from raypref.align.check import check_pairs
from raypref.align.config import TrainingConfig
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import RewardedConfig
from raypref.align.watch import DivergedError, Watch
from raypref.core.config import InputError, load
from raypref.core.ledger import Ledger
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run

ROWS = {
    "twins": "file,caption\nx.png,a\n",
    "labelled": "prompt,chosen,rejected\na,x.png,y.png\n",
    "images": "prompt,image,score\na,x.png,1\n",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, rows in ROWS.items():
        Path(kind).mkdir()
        Path(kind, "captions.csv").write_text(rows)


def configured(kind: str, *settings: str) -> RunConfig:
    return load(RunConfig, "tiny", [f"pairs.kind={kind}", f"source.path={kind}", *settings])


def check(kind: str, *settings: str) -> None:
    """As a run does before its first step."""
    run = Run(configured(kind, "trainings=mine", *settings))
    run.alignment.check_training("mine")


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_single_images_need_an_objective_that_reads_their_scores(objective: str) -> None:
    chosen = f"train.mine.objective={objective}"
    if objective in ("rwr", "raft") or issubclass(OBJECTIVES[objective], RewardedConfig):
        check("images", chosen)  # trainings on rewards read the prompts alone
        return
    told = rf"^train\.mine\.objective={objective} .* kto with sample=image, rwr or raft$"
    with pytest.raises(InputError, match=told) as caught:
        check("images", chosen)
    ignores = objective in ("sft", "dro", "spin")
    assert ("does not read scores" in str(caught.value)) == ignores
    if objective == "kto":
        check("images", chosen, "train.mine.sample=image")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("ema_every=8",), "ema_every=8: no moving average is kept; set ema_decay too"),
        (("ema_every=8", "ema_decay=0.9", "steps=6"), "ema_every=8: with steps=6 the average"),
    ],
)
def test_an_average_that_is_never_updated_is_refused(settings: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        configured("twins", *(f"train.stage2.{setting}" for setting in settings))
    configured("twins", *(f"train.stage2.{s}" for s in ("ema_every=8", "ema_decay=0.9", "steps=7")))


def test_images_that_share_a_hole_are_mirrored_together() -> None:
    inpaints = ("base.family=sd15_inpaint", "base.model=tiny:sd15-inpaint")
    settings = ("train.mine.objective=dpo", "train.mine.flip_per=image")
    check("twins", *settings)
    with pytest.raises(InputError, match=r"^train\.mine\.flip_per=image: .* set it to pair$"):
        check("twins", *settings, *inpaints)
    alone = ("train.mine.objective=kto", "train.mine.sample=image", "train.mine.flip_per=image")
    check("twins", *alone, *inpaints)  # one image: nothing to share


def test_single_images_are_trained_on_by_kto_where_nothing_is_named() -> None:
    config = configured("images")
    assert config.trainings == ("kto_images",)
    made = config.train["kto_images"]
    assert (made.objective, made.sample) == ("kto", "image")  # type: ignore[attr-defined]
    assert made.steps == config.train["stage2"].steps, "a preset's steps are for it too"
    Run(config).alignment.check_training("kto_images")


def test_smpo_without_scores_names_what_labelled_pairs_have() -> None:
    told = r"; set train\.mine\.label_from=gap or label_from=votes$"
    with pytest.raises(InputError, match=told):
        check("labelled", "train.mine.objective=smpo")
    check("labelled", "train.mine.objective=smpo", "train.mine.label_from=votes")
    check("twins", "train.mine.objective=smpo")


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("key", ["reference=base", "reference_decay=0.5"])
def test_a_reference_that_would_be_ignored_is_refused(objective: str, key: str) -> None:
    given = [f"train.mine.objective={objective}", f"train.mine.{key}"]
    kind = OBJECTIVES[objective]
    if kind.model_validate({"objective": objective}).against == "ref":
        load(RunConfig, "tiny", given)
        return
    # What is trained on rewards reads it where the distance to it has a weight.
    assert issubclass(kind, RewardedConfig) or objective in ("mapo", "simpo", "raft", "spin")
    with pytest.raises(InputError, match=rf"{key}: the objective {objective} reads no reference"):
        load(RunConfig, "tiny", given)


def scored(folder: Path, *scores: float | None) -> Ledger:
    rows = [{"id": str(number), "score": score} for number, score in enumerate(scores)]
    ledger = Ledger(str(folder), {})
    ledger.begin()
    ledger.write_part(
        pa.Table.from_pylist(rows, schema=pa.schema({"id": pa.string(), "score": pa.float64()}))
    )
    ledger.commit(expected=len(rows), counts={})
    return ledger


@pytest.mark.parametrize(
    "scores, told",
    [
        (
            (1.0, 3.0, 5.0),
            "all images are desirable, since scores go from 1 to 5; set it to 3",
        ),
        ((0.0, 0.5), "no image is desirable, since scores go from 0 to 0.5; set it to 0.25"),
        ((1.0, 1.0), "all images are desirable, since scores go from 1 to 1; kto needs both"),
        ((1.0, None), "reads score of the pairs, and 1 of 2 have none"),
    ],
)
def test_kto_needs_good_and_bad_images(
    tmp_path: Path, scores: tuple[float | None, ...], told: str
) -> None:
    made = scored(tmp_path, *scores)
    with pytest.raises(InputError, match=told) as caught:
        check_pairs(made, trainings={"mine": training("kto", sample="image")})
    assert str(caught.value).startswith("train.mine.")


def test_kto_trains_from_scores_on_both_sides_of_the_threshold(tmp_path: Path) -> None:
    made = scored(tmp_path, 1.0, 3.0, 5.0)
    above = training("kto", sample="image", desirable_above=3)
    check_pairs(made, trainings={"mine": above, "other": training("rwr")})


def row(error: float, reference: float) -> dict[str, torch.Tensor | float]:
    values = {"loss": 0.1, "ref_chosen": reference, "chosen_gap": error - reference}
    tensors = {key: torch.tensor(value) for key, value in values.items()}
    return {**tensors, "grad_norm": torch.tensor(1.0), "lora_norm": 1.0, "lr": 1e-4}


@pytest.mark.parametrize(
    "stage",
    [
        training("dpo", batch=256, reference="ema"),
        training("linear_dpo", batch=256),
        training("spin", batch=256),
    ],
    ids=lambda stage: stage.objective,
)
def test_an_error_that_a_moving_reference_shares_is_measured_from_the_start(
    stage: TrainingConfig,
) -> None:
    watch = Watch(stage, history=[], name="mine", tell=lambda metrics: None)
    for step, error in enumerate((0.1, 0.15, 0.19), start=1):
        watch.add(step, row(error, reference=error), began=0.0)
    with pytest.raises(DivergedError, match=r"chosen images is 2\.10 times that at first"):
        watch.add(4, row(0.21, reference=0.21), began=0.0)

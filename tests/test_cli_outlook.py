"""What a job says before it begins: `--dry-run`, and the lines that a job begins with."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from corpus import encode, scene

from raypref import cli
from raypref.core.config import InputError, load
from raypref.evaluate.statistics import SUMMARY
from raypref.evaluate.summary import closing
from raypref.run import execute as execute_module
from raypref.run.config import RunConfig
from raypref.run.ending import result_paths
from raypref.run.execute import CURATE, EVALUATE, execute, require_steps_before
from raypref.run.memory_plan import predicted_gib
from raypref.run.outlook import EMBEDDED, Expected, outlook, step_states
from raypref.run.pipeline import Run, Step

STEPS = "pairs > cache > stage1 > stage2 > stage2_alone > evaluation > card > report"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with five photographs, three captioned, and a prompt file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"{number}.jpg").write_bytes(encode(scene(number), "JPEG"))
    for number in range(3):
        (photos / f"{number}.txt").write_text("a scene")
    (tmp_path / "prompts.txt").write_text("a red ball\na blue mug\n")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str, command: str = "run") -> dict[str, str]:
    """What `--dry-run` says, by the first word or words of each line."""
    status = cli.console([command, *words, "--dry-run"])
    out, err = capsys.readouterr()
    if "needs first" in out:  # as the job itself would end
        assert (status, err.count("error: ")) == (2, 1)
        err = ""
    else:
        assert status == 0
    lines = out.splitlines()
    assert err == "" and len(lines) <= 15 and max(len(x) for x in lines if "/" not in x) <= 100
    said: dict[str, str] = {}
    for line in lines:
        if line[:13].strip():
            name = line[:13].strip()
            said[name] = line[13:]
        else:
            said[name] += f" {line.strip()}"
    return said


def complete(config: RunConfig, *steps: str) -> Run:
    """Make the ledgers of some steps look done."""
    run = Run(config)
    for step in run.steps:
        if step.name in steps:
            for ledger in step.ledgers():
                ledger.begin()
                ledger.commit(expected=0, counts={})
    return run


def test_a_dry_run_tells_the_whole_job_and_leaves_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    said = told(capsys, "tiny", "run=mine", "source.path=photos")
    assert sorted(here.rglob("*")) == before
    assert said.pop("disk").startswith("not measured; ")
    assert said == {
        "run folder": f"{here}/runs/mine",
        "photographs": f"5 photographs, 3 with a caption, in {here}/photos",
        "steps": STEPS,
        "time": "not measured on this machine",
        "GPU memory": "none: no step asks for a GPU",
        "downloads": "none",
        "page": f"{here}/runs/mine/report/index.html",
        "note": EMBEDDED,
    }


def test_the_embedded_photographs_need_no_warning(capsys):
    said = told(capsys, "tiny")
    assert "note" not in said
    assert said["photographs"] == "256 photographs, all with a caption, in tiny:world"


def test_photographs_in_shards_are_not_counted_beforehand(here, capsys):
    import tarfile

    with tarfile.open(here / "shard.tar", "w") as shard:
        for end in ("jpg", "txt"):
            shard.add(here / "photos" / f"0.{end}", f"0.{end}")
    said = told(capsys, "tiny", "source.path=shard.tar")
    assert said["photographs"] == f"counted as they are read, in {here}/shard.tar"


def test_the_steps_say_what_is_done_half_done_and_changed(capsys):
    config = load(RunConfig, "tiny", ["run=mine"])
    run = complete(config, "pairs", "cache", "stage2_alone")
    run.trained["stage1"].begin()
    said = told(capsys, "tiny", "run=mine")
    assert (said["steps"], said["done"]) == (STEPS, "pairs, cache, stage2_alone")
    assert said["half done"] == "stage1"
    assert "changed" not in said
    changed = told(capsys, "tiny", "run=mine", "train.stage1.steps=3")
    assert changed["changed"].startswith("stage1: train.stage1.steps: 80 -> 3; take run=NEW, or ")


def test_other_photographs_are_called_that(here, capsys):
    complete(load(RunConfig, "tiny", ["source.path=photos"]), "pairs")
    (here / "photos" / "3.txt").write_text("another scene")
    said = told(capsys, "tiny", "source.path=photos")
    assert said["changed"].startswith("pairs: made from other photographs (what source.path lists")
    assert cli.console(["run", "tiny", "source.path=photos"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "digest" not in line and "made from other photographs" in line and "--redo" in line


def test_a_part_tells_its_own_steps_and_what_must_come_first(capsys):
    said = told(capsys, "tiny", "trainings=stage1", command="align")
    assert (said["steps"], said["needs first"]) == ("cache > stage1", "pairs (raypref curate)")
    assert "page" not in said
    complete(load(RunConfig, "tiny", ["trainings=stage1"]), "pairs")
    assert "needs first" not in told(capsys, "tiny", "trainings=stage1", command="align")
    said = told(capsys, "tiny", "trainings=stage1", command="evaluate")
    assert said["needs first"] == "cache (raypref align)"


def test_minutes_and_disk_are_those_that_earlier_runs_took(here, capsys):
    """Another run took 40 s per photograph and 1 MiB, and 3 s per image and 2 MiB."""
    other = here / "runs" / "other"
    other.mkdir(parents=True)
    (other / "config.toml").write_text('[base]\nmodel = "tiny:sd15"\n')
    steps = {
        "pairs": {"seconds": 4000, "amount": 100, "bytes": 100 * 2**20},
        "evaluation": {"seconds": 30, "amount": 10, "bytes": 20 * 2**20},
    }
    (other / "run.json").write_text(json.dumps({"steps": steps}))
    words = ["source.path=photos", "evaluate.prompts=prompts.txt", "evaluate.seeds=1,2"]
    said = told(capsys, "tiny", *words, "trainings=stage1")
    # 5 photographs; 2 prompts, 2 seeds, 2 models: 5 x 40 s + 8 x 3 s, 5 MiB + 16 MiB.
    assert said["time"] == "about 4 min by earlier runs here; not measured: cache, stage1"
    assert said["disk"].startswith("about 21 MiB and more; ")
    run = complete(load(RunConfig, "tiny", [*words, "trainings=stage1"]), "cache", "stage1")
    run.evaluation.images.ledgers["base"].begin()
    run.evaluation.images.ledgers["base"].commit(expected=0, counts={})
    said = told(capsys, "tiny", *words, "trainings=stage1")
    assert said["time"] == "about 4 min by earlier runs here"  # 200 s + 4 x 3 s
    assert said["disk"].startswith("about 13 MiB; ")
    (other / "run.json").write_text("{")  # a record that was damaged holds up no job
    assert told(capsys, "tiny", *words)["time"] == "not measured on this machine"


@pytest.mark.parametrize(
    ("words", "minutes"),
    [
        (["candidates.count=8", "pairs.limit=3"], 12),  # 24 paintings at 30 s
        (["candidates.count=16", "pairs.limit=3"], 24),
        (["candidates.count=8"], 20),  # of five photographs
        (["candidates.count=8", "pairs.limit=100"], 20),
    ],
)
def test_the_time_of_candidates_is_by_paintings_and_not_that_of_twins(here, capsys, words, minutes):
    """100 photographs, 10 of which were painted 4 times in 1,200 s; twins took 1 s each."""
    made = {"candidates": (1200, "limit = 10\n[candidates]\ncount = 4\n"), "twins": (100, "")}
    for kind, (seconds, more) in made.items():
        folder = here / "runs" / kind
        folder.mkdir(parents=True)
        settings = f'[base]\nmodel = "tiny:sd15"\n[pairs]\nkind = "{kind}"\n{more}'
        (folder / "config.toml").write_text(settings)
        step = {"seconds": seconds, "amount": 100, "bytes": 0}
        (folder / "run.json").write_text(json.dumps({"steps": {"pairs": step}}))
    given = ["source.path=photos", "evaluate.prompts=prompts.txt", "trainings=[]"]
    said = told(capsys, "tiny", *given, "pairs.kind=candidates", *words)
    assert said["time"].startswith(f"about {minutes} min by earlier runs here")
    said = told(capsys, "tiny", *given)
    assert said["time"].startswith("less than 10 s by earlier runs here")


def test_models_to_download_are_named(here, capsys, monkeypatch):
    cache = here / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    words = ["sd15", "source.path=photos", "evaluate.prompts=prompts.txt"]
    said = told(capsys, *words)
    names = ["u2net.pth", "stable-diffusion-v1-5/stable-diffusion-inpainting"]
    names += ["yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"]
    assert said["downloads"].startswith(", ".join(names[:3]) + " and 2 more (all of ")
    peaks = predicted_gib(load(RunConfig, "sd15", ["source.path=photos"]))
    assert {"scored", "twins", "cache", "stage1", "stage2", "images"} <= peaks.keys()
    listed = ", ".join(f"{name} {peak:g}" for name, peak in peaks.items())
    card = "a card of 24 GB has room"  # as docs/gpu.md says of this preset
    assert said["GPU memory"] == f"{card}: {listed} GiB per GPU (predicted)"
    assert "note" not in said
    (cache / "models--yuvalkirstain--PickScore_v1" / "snapshots" / "abc").mkdir(parents=True)
    (cache / "models--yuvalkirstain--PickScore_v1/snapshots/abc/config.json").write_text("{}")
    (here / "u2net.pth").write_bytes(b"")
    said = told(capsys, *words, command="curate")
    assert said["downloads"].startswith(f"{names[1]}, {names[3]} (")


@pytest.mark.parametrize(
    "preset, card",
    [
        ("sd35m", "24 GB has room"),
        ("sdxl", "24 GB has room"),
        ("flux", "80 GB has room"),
        ("z_image", "80 GB has room"),
        ("flux2_klein", "24 GB has room"),
        ("qwen_image", "80 GB has room"),
    ],
)
def test_the_card_that_has_room_is_named(preset: str, card: str, here, capsys) -> None:
    """The cards are those of docs/gpu.md."""
    words = ["source.path=photos", "evaluate.prompts=prompts.txt"]
    assert told(capsys, preset, *words)["GPU memory"].startswith(f"a card of {card}: ")


def test_steps_without_room_on_any_card_are_named(here, capsys) -> None:
    words = ["source.path=photos", "evaluate.prompts=prompts.txt", "train.stage1.micro_batch=64"]
    words += ["train.stage1.gradient_checkpointing=false"]
    said = told(capsys, "qwen_image", *words)["GPU memory"]
    assert said.startswith("a card of 80 GB has no room for stage1: scored ")


def test_many_trainings_still_fit(capsys):
    trainings = [f"a_training_with_a_long_name_{number}" for number in range(20)]
    words = [f"train.{name}.like=stage2" for name in trainings]
    said = told(capsys, "tiny", *words, f"trainings={','.join(trainings)}")
    assert said["steps"].endswith(" ...")


def test_a_job_begins_with_it_once_nothing_is_wrong(monkeypatch):
    began: list[list[str]] = []

    def announce(run: Run) -> None:
        began.append(outlook(run, only=CURATE, estimate=lambda run, step, amount: None))

    monkeypatch.setattr(execute_module, "carry_out", lambda run, **how: began.append([*how]))
    words = ["source.path=photos", "perturb.model=tiny:lost"]
    with pytest.raises(InputError, match="tiny:lost"):
        execute(load(RunConfig, "tiny", words), only=CURATE, announce=announce)
    assert began == []
    execute(load(RunConfig, "tiny", words[:1]), only=CURATE, announce=announce)
    assert began[0][1].startswith("photographs  5 photographs, 3 with a caption")
    assert began[1:] == [["only", "before"]]


def test_an_estimate_is_asked_for_what_is_not_done():
    asked: list[tuple[str, float | None]] = []

    def estimate(run: Run, step: object, amount: float | None) -> Expected:
        asked.append((step.name, amount))  # type: ignore[attr-defined]
        return Expected(30.0, 2**31)

    config = load(RunConfig, "tiny", ["source.path=photos", "trainings=stage1"])
    lines = outlook(complete(config, "pairs"), estimate=estimate)
    # 32 held-out prompts, 2 seeds, 2 models.
    assert asked == [("cache", None), ("stage1", None), ("evaluation", 128)]
    assert any("about 2 min by earlier runs here" in line for line in lines)
    assert any("about 6.0 GiB; " in line for line in lines)


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["evaluate.prompts=", "evaluate.limit=0"], 2 * 100 * 2),  # the most held-out
        (["evaluate.prompts=", "evaluate.limit=9"], 2 * 9 * 2),
        (["evaluate.prompts=prompts.txt,more.txt"], 2 * (2 + 1) * 2),
    ],
)
def test_images_are_counted_over_all_prompts_before_they_are_known(here, words, images):
    (here / "more.txt").write_text("a green door\n")
    asked: dict[str, float | None] = {}

    def estimate(run: Run, step: Step, amount: float | None) -> Expected:
        asked[step.name] = amount
        return Expected(30.0, 0.0)

    given = ["source.path=photos", "trainings=stage1", "evaluate.seeds=1,2", *words]
    outlook(Run(load(RunConfig, "tiny", given)), estimate=estimate)
    assert asked == {"pairs": 5, "cache": None, "stage1": None, "evaluation": images}


def test_the_verdict_covers_every_metric_of_the_table():
    nan = (np.nan,) * 3
    metrics = {
        "pickscore": (1.0, 0.8, 1.2, "better"),
        "texture": (5.0, -1.0, 11.0, "no clear difference"),
        "colorfulness": (-2.0, -3.0, -1.0, "worse"),
        "prompt_accuracy": (-0.05, -0.1, -0.01, "worse"),
        "cmmd": (-1.0, -1.5, -0.5, "better"),
        "fid": (-10.0, np.nan, np.nan, "no interval"),
    }
    rows = [("base", name, 20.0, 19.0, 21.0, *nan, 24, 48, 0) for name in metrics]
    rows += [("stage2", n, 20.0, 19.0, 21.0, *m[:3], 24, 48, 0) for n, m in metrics.items()]
    summary = pd.DataFrame(rows, columns=list(SUMMARY))
    labels = {"base": "base", "stage2": "stage 1 + stage 2"}
    lines = closing(summary, final="stage2", labels=labels).splitlines()
    verdicts = lines[lines.index("stage 1 + stage 2 against base:") + 1 :]
    assert len(verdicts) == len(metrics)
    for line, (*_, verdict) in zip(verdicts, metrics.values(), strict=True):
        assert line.endswith(verdict)


def test_the_last_lines_name_what_there_is(here):
    config = load(RunConfig, "tiny", ["run=mine", "export.formats=folders", "trainings=stage1"])
    run, folder = Run(config), here / "runs" / "mine"
    run.curation.pairs.begin()
    run.curation.pairs.commit(expected=0, counts={})
    assert [*result_paths(run, result="Pairs")] == ["Pairs", "Export"]
    run.tracker = SimpleNamespace(run_id="abc")  # type: ignore[assignment]
    os.makedirs(folder / "stage1")  # noqa: PTH103
    (folder / "stage1" / "mine-stage1.safetensors").write_bytes(b"")
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("")
    assert result_paths(run, result="Report") == {
        "MLflow": f"{here}/runs/mlflow.db",
        "Pairs": f"{folder}/pairs",
        "Export": f"{folder}/export",
        "LoRA for ComfyUI and others": f"{folder}/stage1/mine-stage1.safetensors",
        "LoRA": f"{folder}/stage1/pytorch_lora_weights.safetensors",
        "Report": f"{folder}/report/index.html",
    }


def test_the_time_of_a_run_is_that_of_all_its_commands(monkeypatch):
    """Earlier commands took 50 s, this one 100 s before its first step, each step takes 10 s."""
    now, told = [0.0], []
    monkeypatch.setattr(execute_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(execute_module, "_write_record", lambda run, record: None)

    def work() -> SimpleNamespace:
        told.append(record["seconds"])  # what a page that is made now reads
        now[0] += 10
        return SimpleNamespace(amount=1, unit="cards", busy=0.0)

    ledger = SimpleNamespace(path="absent")
    monkeypatch.setattr(execute_module, "size", lambda path: 0)
    steps = [
        SimpleNamespace(name="stage1", done=False, run=work, ledgers=lambda: (ledger,)),
        SimpleNamespace(name="report", done=False, run=work, ledgers=tuple),
    ]
    record = {"steps": {}, "seconds": 50.0}
    run: Any = SimpleNamespace(redo=False)
    execute_module._take(
        run, steps[:1], record, lambda step: nullcontext(), began=-100.0, pages=False
    )  # type: ignore[arg-type]
    assert record["seconds"] == 160, "a job that ends with a training counts it"
    record = {"steps": {}, "seconds": 50.0}
    now[0], told[:] = 0.0, []
    execute_module._take(run, steps, record, lambda step: nullcontext(), began=-100.0, pages=False)  # type: ignore[arg-type]
    assert told == [150, 160]
    assert record["seconds"] == told[-1], "the terminal says what the page says"


def test_an_export_asked_for_later_holds_up_no_other_job(here):
    run = Run(load(RunConfig, "tiny", ["export.formats=['folders']"]))
    for step in run.steps:
        if step.name in ("pairs", "cache", *run.trained):
            for ledger in step.ledgers():
                ledger.begin()
                ledger.commit(expected=0, counts={})
    assert step_states(run, only=EVALUATE)["evaluation"] == "to do"
    require_steps_before(run, only=EVALUATE)
    next(step for step in run.steps if step.name == "cache").ledgers()[0].clear()
    with pytest.raises(InputError, match=r"has no cache for .* Run raypref align or raypref run"):
        require_steps_before(run, only=EVALUATE)

"""An evaluation on holes, from a folder to its table: nothing is painted twice or silently lost."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import without_ray
from PIL import Image
from report_runs import fill

from raypref.core.config import InputError, build, load
from raypref.core.ledger import Ledger
from raypref.curate.publish import PHOTOS
from raypref.demo.holes import write_holes
from raypref.evaluate import every, painting, sets
from raypref.evaluate.generate import BASE, GenerateConfig
from raypref.evaluate.kept import decibels
from raypref.evaluate.painting import Paint, hole_prompts
from raypref.evaluate.sets import hole_identity
from raypref.images.decode import open_png
from raypref.models import adapters, lora
from raypref.models.backbone import BackboneConfig, load_denoiser
from raypref.models.lora_config import LoraConfig
from raypref.run.config import RunConfig
from raypref.run.outlook import _images, outlook
from raypref.run.pipeline import Run
from raypref.sources.holes import read_holes
from raypref.sources.remembered import unchanged

INPAINT = ("base.family=sd15_inpaint", "base.model=tiny:sd15-inpaint")
SEEDS = (42, 7)
COUNT, BROKEN = 4, 1  # of the holes, one of which cannot be read
GOOD = [number for number in range(COUNT) if number != BROKEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with masks and captions, one photograph cut short."""
    made = tmp_path_factory.mktemp("sets") / "mine"
    write_holes(made, COUNT)
    broken = made / f"hole_{BROKEN:04d}.png"
    broken.write_bytes(broken.read_bytes()[:400])
    return made


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA that changes the paintings."""
    made, config = tmp_path_factory.mktemp("lora"), LoraConfig(rank=2, alpha=2)
    base = BackboneConfig(family="sd15_inpaint", model="tiny:sd15-inpaint")
    denoiser = load_denoiser(base, device=torch.device("cpu"))
    adapters.attach(denoiser.module, config, names=("learner",), seed=3)
    generator = torch.Generator().manual_seed(3)
    values = {
        key: 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in adapters.state(denoiser.module, "learner").items()
    }
    lora.save(values, config, folder=str(made), component="unet")
    return str(made)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Passes run here; every painting that is asked for is noted by its id."""
    without_ray(monkeypatch)
    seen: list[str] = []
    finish = Paint.finish

    def noting(self: Paint, rows: list[Any], out: Any) -> None:
        seen.extend(row["id"] for row in rows)
        finish(self, rows, out)

    monkeypatch.setattr(Paint, "finish", noting)
    return seen


def a_run(storage: Path, *words: str) -> Run:
    given = (
        *(f"storage={storage}", "run=painted", "trainings=[]", "metrics.critic=''"),
        *("evaluate.steps=2", f"evaluate.seeds={list(SEEDS)}", "table.resamples=100"),
    )
    return Run(load(RunConfig, "tiny", [*given, *INPAINT, *words]))


def evaluated(run: Run) -> Any:
    run.evaluations.run(trained=run.trained, streaming=run.config.stream)
    [table] = run.evaluations.tables()
    return table.table


# ------------------------------------------------------------------ settings


def test_a_base_that_cannot_inpaint_is_told_before_any_work():
    with pytest.raises(InputError, match=r"base\.family=sd15 does not inpaint") as caught:
        load(RunConfig, "tiny", ["evaluate.holes=tiny:holes"])
    assert "\n" not in str(caught.value) and "sd15_inpaint" in str(caught.value)


def test_several_sets_of_holes_are_named_as_prompts_are():
    assert build(GenerateConfig, {"holes": "a,b"}).hole_files == ("a", "b")
    assert build(GenerateConfig, {}).hole_files == ()
    with pytest.raises(InputError, match=r"evaluate\.holes: a is named twice"):
        build(GenerateConfig, {"holes": "a,a"})


def test_the_same_holes_elsewhere_are_the_same_and_others_are_not(folder, tmp_path):
    def identity(path: Path) -> str:
        return hole_identity(read_holes(str(path), limit=None))

    shutil.copytree(folder, tmp_path / "copy")
    before = identity(folder)
    assert identity(tmp_path / "copy") == before and before.startswith(f"{COUNT} holes")
    assert hole_identity(read_holes(str(folder), limit=2)) != before
    Image.new("L", (64, 64), 255).save(tmp_path / "copy" / "hole_0000_mask.png")
    assert identity(tmp_path / "copy") != before
    shutil.copytree(folder, tmp_path / "told")
    captions = tmp_path / "told" / "captions.csv"
    captions.write_text(captions.read_text().replace("a photo", "one photo", 1))
    assert identity(tmp_path / "told") != before


@pytest.mark.parametrize("file", ["a.png", "a_mask.png"])
def test_a_file_edited_without_a_change_of_its_size_makes_other_holes(file, tmp_path, monkeypatch):
    def hole(left: int) -> Image.Image:
        mask = Image.new("L", (64, 64))
        mask.paste(255, (left, 8, left + 16, 24))
        return mask

    def identity() -> str:
        return hole_identity(read_holes(str(tmp_path), limit=None))

    for name in ("a.png", "a_mask.png"):
        hole(4).save(tmp_path / name, compress_level=0)
    (tmp_path / "a.txt").write_text("a thing")
    size, before = (tmp_path / file).stat().st_size, identity()
    hole(30).save(tmp_path / file, compress_level=0)
    assert (tmp_path / file).stat().st_size == size
    assert identity() != before

    # Runs of one table read the files once.
    read: list[str] = []
    digest = sets.file_digest
    monkeypatch.setattr(
        sets, "file_digest", lambda store, name: read.append(name) or digest(store, name)
    )
    with unchanged():
        for number in range(3):
            run = a_run(tmp_path / f"{number}", f"evaluate.holes={tmp_path}")
            assert run.evaluations.sets.all[0].identity.startswith("1 holes")
    assert sorted(read) == ["a.png", "a_mask.png"]


def test_the_embedded_holes_keep_the_identity_of_earlier_results(tmp_path):
    own = a_run(tmp_path, "evaluate.holes=tiny:holes").evaluations.sets.all[0].identity
    assert own == "32 holes, sha256 bfb822704201e98d"


# ------------------------------------------------------------------ from a folder to a table


def test_holes_are_painted_by_every_model_once(folder, ours, calls, tmp_path, caplog):
    words = (f"evaluate.holes={folder}", f"evaluate.loras={{ours='{ours}'}}")
    run = a_run(tmp_path, *words)
    assert _images(run) == 2 * COUNT, "before the photographs are read"
    with caplog.at_level(logging.WARNING):
        table = evaluated(run)
    assert "1 of 4 holes are left out: 1 truncated" in caplog.text
    ev = run.evaluation
    assert ev.set.at == "evaluation" and ev.set.name == "mine"
    held = ev.photographs
    assert held is not None and held.state() == "complete"
    assert list(hole_prompts(held)) == GOOD
    expected = {f"{m}/{n:05d}/{s}" for m in (BASE, "ours") for n in GOOD for s in SEEDS}
    assert sorted(calls) == sorted(expected)

    # What must stay, of the models' own output, by plain arithmetic.
    photos = {row["prompt_id"]: row for row in held.rows(where=painting.SOUND)}
    for model in (BASE, "ours"):
        scores = {row["id"]: row for row in ev.scores("kept").ledgers[model].rows()}
        for row in ev.images.ledgers[model].rows():
            photo = photos[row["prompt_id"]]
            original, raw, image = (
                np.asarray(open_png(data)) / 255.0
                for data in (photo["photograph"], row["raw"], row["image"])
            )
            hole = np.asarray(open_png(photo["mask"])) > 127
            off = (raw - original)[~hole] ** 2
            mse = off.sum() / off.size
            assert scores[row["id"]]["mse_kept"] == pytest.approx(1000 * mse, rel=1e-5)
            assert scores[row["id"]]["psnr_kept"] == pytest.approx(-10 * np.log10(mse), rel=1e-5)
            assert ((image - original)[~hole] ** 2).mean() < mse / 4, "blended"
    metrics = {"pickscore", "psnr_kept", "mse_kept", "cmmd", "fid", "texture_detail"}
    assert metrics <= {*table["metric"]}
    assert (table[table["metric"] == "pickscore"]["n_prompts"] == len(GOOD)).all()
    assert (table["n_unscored"] == 0).all()
    wins = (tmp_path / "painted/evaluation/wins.csv").read_text()
    assert "ours,base,psnr_kept" in wins and "ours,base,mse_kept" in wins
    about = json.loads((tmp_path / "painted/evaluation/prompts.json").read_text())
    assert about == {"name": "mine", "prompts": f"4 holes of {folder}"}

    # Again, and with a measure more: nothing is painted.
    before = list(calls)
    evaluated(a_run(tmp_path, *words))
    more = ("metrics.rewards=['pickscore','clipscore']", "metrics.cmmd_estimator=biased")
    looks = a_run(tmp_path, *words, *more)
    assert _images(looks) == 0
    names = {*evaluated(looks)["metric"]}
    assert {"clipscore", "cmmd_biased"} <= names and "cmmd" not in names
    text = (tmp_path / "painted/evaluation/table.md").read_text()
    assert "CMMD (biased) ↓: the published estimator" in text
    assert calls == before
    # What is judged is part of what the images are.
    raw = a_run(tmp_path, *words, "evaluate.blend=false")
    images = raw.evaluation.images.ledgers[BASE]
    assert images.state() == "stale" and images.changes() == ["evaluate.blend: True -> False"]


def test_the_set_of_a_text_to_image_base_knows_nothing_of_blending():
    words = ("storage=/nowhere", "run=x", "trainings=[]")
    kept = {
        blend: Run(load(RunConfig, "tiny", [*words, f"evaluate.blend={blend}"]))
        for blend in ("true", "false")
    }
    prints = {run.evaluation.images.fingerprint for run in kept.values()}
    assert len(prints) == 1


def test_no_hole_that_can_be_read_is_said_in_a_line(folder, calls, tmp_path):
    bad = tmp_path / "bad"
    write_holes(bad, 1)
    (bad / "hole_0000.png").write_bytes(b"no image")
    run = a_run(tmp_path, f"evaluate.holes={bad}")
    with pytest.raises(InputError, match=r"evaluate\.holes: no hole can be read; the first: "):
        evaluated(run)
    assert not calls


def test_samples_of_a_training_are_paintings_of_the_first_holes(folder, ours, calls, tmp_path):
    run = a_run(tmp_path, f"evaluate.holes={folder}", "evaluate.samples=2")
    stage = Ledger(str(tmp_path / "stage1"), {})
    stage.begin()
    shutil.copytree(ours, Path(stage.path) / "milestones" / "step-00000005")
    run.evaluations.run(trained={"stage1": stage}, streaming=run.config.stream)
    drawn = Path(stage.path) / "samples"
    assert sorted(f.name for f in drawn.iterdir()) == ["step-00000000.png", "step-00000005.png"]
    strip = Image.open(drawn / "step-00000000.png")
    assert strip.size == (2 * 64, 64), "two that can be read"
    images = run.evaluation.images.ledgers[BASE].rows(["id", "image"])
    first = {row["id"]: np.asarray(open_png(row["image"])).astype(int) for row in images}
    for place, number in enumerate(GOOD[:2]):
        shown = np.asarray(strip)[:, 64 * place : 64 * (place + 1)].astype(int)
        assert np.abs(shown - first[f"base/{number:05d}/{SEEDS[0]}"]).max() <= 1, "another batch"


# ------------------------------------------------------------------ without holes


def test_an_inpainter_without_holes_paints_whole_pictures_and_says_so(tmp_path, caplog, calls):
    run = a_run(tmp_path, "evaluate.prompts=tiny:prompts", "evaluate.limit=1")
    with caplog.at_level(logging.INFO, logger=every.__name__):
        run.evaluations.run(trained={}, streaming=run.config.stream)
    assert every.WHOLE in caplog.text and not calls
    assert run.evaluation.photographs is None
    assert run.evaluation.images.ledgers[BASE].count() == len(SEEDS)
    assert "kept" not in run.evaluation.measures


def test_the_outlook_says_what_is_painted(folder, tmp_path):
    def lines(*words: str) -> str:
        run = a_run(tmp_path, *words, "source.path=tiny:world")
        return "\n".join(outlook(run, only=("evaluation",), estimate=lambda *about: None))

    assert f"evaluation   paints 4 holes of {folder}" in " ".join(
        lines(f"evaluate.holes={folder}").split("\n")
    )
    whole = lines("evaluate.prompts=tiny:prompts")
    assert "evaluation   paints whole pictures from prompts" in whole
    run = Run(load(RunConfig, "tiny", [f"storage={tmp_path}", "source.path=tiny:world"]))
    told = outlook(run, only=("evaluation",), estimate=lambda *about: None)
    assert not any(line.startswith("evaluation ") for line in told)


def test_captions_held_out_serve_an_inpainter_too(tmp_path):
    run = a_run(tmp_path, "evaluate.prompts=")
    rows = [
        {"id": str(n), "caption": f"kept {n}", "status": "not_selected", "reason": "low_score"}
        for n in range(9)
    ]
    fill(run.curation.inputs, rows, PHOTOS)
    assert run.evaluation.set.holes is None
    assert len(run.evaluation.prompts) == 9


def test_of_a_hole_that_leaves_nothing_no_psnr_is_said():
    assert np.isnan(decibels(float("nan"))), "not the best of all"
    assert decibels(0.0) == 100 and decibels(1e-3) == pytest.approx(30)

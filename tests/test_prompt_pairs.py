"""Prompts as the input of a run: what each ends as, what is encoded, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd
import pyarrow as pa
import pytest
import small
import torch
from PIL import Image
from test_loop import TIMES
from test_online import judge, online
from training import LORAS, denoiser, pairs, rows_of

from raypref.align.cache_config import CacheConfig
from raypref.align.latents import FLIPS, rows_to_encode
from raypref.align.loop import Alone, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import OnlineConfig
from raypref.align.pair_data import read_pairs
from raypref.align.prompt_latents import EncodePrompts, encoding
from raypref.core.config import InputError, load, setting
from raypref.core.ledger import Ledger
from raypref.images.decode import ImageConfig
from raypref.models.backbone import BackboneConfig
from raypref.pairs.prompts import PromptPairs
from raypref.run.config import RunConfig
from raypref.run.pipeline import Run


class Drawn(OnlineConfig):
    """An objective on rewards."""

    against: ClassVar[str] = "policy"
    objective: Literal["drawn"] = setting("drawn", "of this test")


@pytest.fixture(autouse=True)
def with_an_objective_on_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "drawn", Drawn)


def run_of(tmp_path: Path, *words: str, preset: str = "tiny") -> Run:
    own = ["pairs.kind=prompts", "trainings=drawn", f"storage={tmp_path}", "run=r"]
    return Run(load(RunConfig, preset, [*own, *words]))


def made(tmp_path: Path, file: Path, *words: str) -> PromptPairs:
    run = run_of(tmp_path / "runs", f"source.path={file}", *words)
    assert isinstance(run.curation, PromptPairs)
    run.curation.run(run.config.stream)
    return run.curation


LINES = ["a cat", "", "a dog", "  a cat ", "   ", "a\0b", "x" * 40, "a fox", "a cow"]
FATES = ["pair", "no_caption", "pair", "duplicate", "no_caption", "bad_caption"]
FATES += ["caption_too_long", "pair", "beyond_limit"]


def test_every_prompt_ends_exactly_once(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_text("\n".join(LINES) + "\n")
    maker = made(tmp_path, file, "pairs.limit=3", "source.max_caption=30")
    ended = list(maker.inputs.rows())
    assert [row["reason"] or row["status"] for row in ended] == FATES
    assert [row["id"] for row in ended] == [f"p.txt#{n:09d}" for n in range(1, 10)]
    assert [row["prompt"] for row in maker.pairs.rows()] == ["a cat", "a dog", "a fox"]
    assert maker.pairs.schema().names == ["id", "key", "prompt"]  # no images
    for ledger in maker.ledgers[1:]:
        assert ledger.manifest()["counts"] == Counter(FATES)
    rejects = {row["id"]: row["message"] for row in maker.rejects.rows()}
    assert len(rejects) == 4 and "40 characters" in rejects["p.txt#000000007"]
    assert maker.entries() == 9 and "9 prompts, 1 repeated, 4 unusable" in maker.described()


@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.tsv", "p.jsonl", "p.json", "p.parquet"])
def test_all_formats_hold_the_same_prompts(tmp_path: Path, name: str) -> None:
    texts, file = ["a cat", "two, dogs", "vier Füße"], tmp_path / name
    table = pd.DataFrame({"prompt": texts})
    if name == "p.txt":
        file.write_text("\n".join(texts))
    elif name == "p.json":
        file.write_text(json.dumps(texts))
    elif name == "p.jsonl":
        table.to_json(file, orient="records", lines=True)
    elif name == "p.parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, sep="\t" if name == "p.tsv" else ",")
    assert [row["prompt"] for row in made(tmp_path, file).pairs.rows()] == texts


def test_captions_of_photographs_are_prompts_too(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/captions.csv").write_text("file,caption\na.png,one\nb.png,two\n")
    (tmp_path / "photos/a.png").write_bytes(b"not looked at")
    maker = made(tmp_path, tmp_path / "photos")
    assert [row["id"] for row in maker.pairs.rows()] == [
        "captions.csv#000000001",
        "captions.csv#000000002",
    ]


def test_no_prompt_is_told_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n\n")
    with pytest.raises(InputError, match="no prompt was left: 2 no_caption"):
        made(tmp_path, tmp_path / "p.txt")


@pytest.mark.parametrize(("family", "name"), [("sd15", "sd15"), ("sd35m", "sd3")])
def test_captions_are_encoded_and_latents_have_a_shape(
    tmp_path: Path, family: str, name: str
) -> None:
    file = tmp_path / "p.txt"
    file.write_text("a red ball\na blue box\n")
    pairs = made(tmp_path, file).pairs
    base = BackboneConfig(family=family, model=str(small.path(name)))
    stage = encoding(base, CacheConfig(), ImageConfig(size=64), images=False)
    assert isinstance(stage, EncodePrompts) and stage.reads == ("prompt",)
    stage.setup()
    rows = rows_of(rows_to_encode(pairs, stage.reads))
    stage.finish(rows, stage.compute(stage.prepare(rows)))
    cache = Ledger(str(tmp_path / "cache"), {})
    cache.begin()
    schema = pa.schema([("id", pa.string()), *stage.writes])
    cache.write_part(pa.Table.from_pylist(rows, schema=schema))
    data = read_pairs(cache, base, pairs=pairs, texts=True)
    one = stage.encoder.image_moments([Image.new("RGB", (64, 64), "red")])
    assert data.latent_shape == tuple(one.shape[2:])
    assert data.moments.shape == (2, 0, FLIPS, *one.shape[1:])
    assert len(data) == 2 and data.texts == ("a red ball", "a blue box")
    own = stage.encoder.text_embeddings(["a blue box", ""])
    assert torch.equal(data.embeddings[1].sequence_BLD, own[0].sequence_BLD)
    assert torch.equal(data.unconditional.sequence_BLD, own[1].sequence_BLD)


def test_a_training_on_prompts_is_the_one_on_pairs_with_the_same_prompts(tmp_path: Path) -> None:
    whole = pairs()
    whole = replace(whole, texts=tuple(f"prompt {n}" for n in range(len(whole))))
    alone = replace(whole, moments=whole.moments[:, :0])
    assert len(alone) == len(whole) and alone.latent_shape == whole.latent_shape
    found = [
        train(
            denoiser(),
            data,
            online(steps=3),
            LORAS["sd15"],
            name="stage",
            draws="test",
            seed=0,
            folder=str(tmp_path / str(number)),
            start=None,
            group=Alone(),
            on_step=lambda metrics: None,
            judge=judge(),
        )
        for number, data in enumerate((whole, alone))
    ]
    for one, other in zip(*found, strict=True):
        assert {k: v for k, v in one.items() if k not in TIMES} == {
            k: v for k, v in other.items() if k not in TIMES
        }


def test_the_size_of_rollouts_is_part_of_what_is_encoded_alone(tmp_path: Path) -> None:
    one, other = run_of(tmp_path), run_of(tmp_path, "images.size=32")
    assert one.cache.fingerprint != other.cache.fingerprint
    assert one.curation.pairs.fingerprint == other.curation.pairs.fingerprint


@pytest.mark.parametrize("objective", ["dpo", "dro", "sft", "kto", "rwr"])
def test_objectives_on_images_are_refused(tmp_path: Path, objective: str) -> None:
    run = run_of(tmp_path, f"trainings={objective}")
    with pytest.raises(InputError, match=f"train.{objective}.objective={objective} learns from im"):
        run.alignment.check_training(objective)


def test_objectives_on_rewards_take_every_kind_of_pairs(tmp_path: Path) -> None:
    run_of(tmp_path).alignment.check_training("drawn")
    for number in range(2):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = {
        "labelled": {"prompt": "a cat", "chosen": "0.png", "rejected": "1.png"},
        "images": {"prompt": "a cat", "image": "0.png", "score": 1.0},
    }
    for kind, row in rows.items():
        file = tmp_path / f"{kind}.jsonl"
        file.write_text(json.dumps(row) + "\n")
        words = [f"pairs.kind={kind}", f"source.path={file}"]
        run_of(tmp_path, *words).alignment.check_training("drawn")
    run_of(tmp_path, "pairs.kind=twins", "source.path=tiny:world").alignment.check_training("drawn")


def test_rewards_of_painted_holes_are_refused(tmp_path: Path) -> None:
    words = ["trainings=drawn", f"storage={tmp_path}"]
    run = Run(load(RunConfig, "fyp_tiny", words))
    with pytest.raises(InputError, match=r"train\.drawn\.objective=drawn .* paints holes"):
        run.alignment.check_training("drawn")
    with pytest.raises(InputError, match=r"pairs\.kind=prompts has none"):
        run_of(tmp_path, "base.family=sd15_inpaint")


def test_formats_of_pairs_are_refused_and_distances_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pairs\.kind=prompts has prompts alone"):
        run_of(tmp_path, "export.formats=folders")
    run = run_of(tmp_path)
    assert run.config.metrics.distance and not run.evaluation.distance
    assert run_of(tmp_path, "pairs.kind=twins").evaluation.distance

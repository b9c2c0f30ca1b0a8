"""Missing captions: the model's own answers, only where there is none, marked to the end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from corpus import encode, scene
from in_process import without_ray
from PIL import Image
from small_vlm import prompt_text, save_qwen2_5_vl, save_qwen3_vl
from transformers import AutoModelForImageTextToText, AutoTokenizer

from raypref.core.config import InputError, load, results_of
from raypref.core.ledger import in_folder
from raypref.core.rows import Row
from raypref.curate.captions import CaptionsConfig, WriteCaption, tidied
from raypref.curate.graph import Curation
from raypref.engine.batches import in_batches
from raypref.engine.stream import StreamConfig
from raypref.report.photographs import FILTERS, photograph_funnel
from raypref.run.config import RunConfig
from raypref.sources.index import SourceConfig, digest, write_index

SAYS = ["a", "\u0120crisp", "\u0120picture", "."]


def model_that_says(folder: Path, *pieces: str) -> Path:
    return save_qwen2_5_vl(folder / "says-something", says=pieces)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3_vl(tmp_path_factory.mktemp("qwen3"))


def test_a_caption_is_what_the_model_says_by_itself(qwen3: Path) -> None:
    """Greedy, token by token, inputs made by hand; the others of a batch change nothing."""
    config = CaptionsConfig(model=str(qwen3), dtype="float32", prompt="What is it?", max_tokens=5)
    stage = WriteCaption(config)
    stage.setup()
    images = [scene(number, size=(64, 64)) for number in range(3)]
    answers = stage.compute(stage.prepare([{"chosen": image} for image in images]))
    tokenizer = AutoTokenizer.from_pretrained(qwen3)
    model = AutoModelForImageTextToText.from_pretrained(qwen3, dtype=torch.float32).eval()
    stop = set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))
    for image, answer in zip(images, answers, strict=True):
        assert stage.compute(stage.prepare([{"chosen": image}])) == [answer]
        assert answer == by_hand(model, tokenizer, stage, image, stop)
    assert len(set(answers)) > 1, "it looks at nothing"


def by_hand(model: Any, tokenizer: Any, stage: WriteCaption, image: Image.Image, stop: set) -> str:
    text = prompt_text("What is it?", (64 // 32) ** 2)
    ids = tokenizer(text, return_tensors="pt").input_ids
    pixels = stage.model.read.images(images=[image], return_tensors="pt")
    length = ids.shape[1]
    while ids.shape[1] < length + 5 and not set(ids[0, length:].tolist()) & stop:
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                pixel_values=pixels["pixel_values"],
                image_grid_thw=torch.tensor([[1, 4, 4]]),
                mm_token_type_ids=(ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
            ).logits[0, -1]
        ids = torch.cat([ids, logits.argmax()[None, None]], 1)
    answer = tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
    assert isinstance(answer, str)
    return answer


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A dog.", "A dog."),
        ('"A dog on\n  grass"', "A dog on grass"),
        ("“A dog.”", "A dog."),
        ("A dog. It is ve", "A dog."),
        ("A dog at 3.5 metres, and it is ve", "A dog at 3.5 metres, and it is ve"),
        ("Is it? A dog! In the su", "Is it? A dog!"),
        ("a\0dog", "a dog"),
        (" \n ", ""),
    ],
)
def test_an_answer_becomes_one_line(answer: str, caption: str) -> None:
    assert tidied(answer) == caption


def test_an_empty_answer_drops_the_photograph(tmp_path: Path) -> None:
    config = CaptionsConfig(model=str(model_that_says(tmp_path, "\u0120")), dtype="float32")
    stage = WriteCaption(config)
    stage.setup()
    rows: list[Row] = [{"id": "a", "chosen": scene(1, size=(64, 64))}]
    in_batches(stage, rows)
    assert (rows[0]["reject_stage"], rows[0]["reject_reason"]) == ("captions", "no_caption")


# ------------------------------------------------------------- from photographs to pairs


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


def photographs(root: Path, *, bare: int, captioned: int) -> Path:
    """Colourful ones and a grey one, which lowers the mean; one file is broken."""
    root.mkdir()
    for number in range(bare + captioned):
        (root / f"{number}.png").write_bytes(encode(scene(number, size=(80, 64)), "PNG"))
        if number >= bare:
            (root / f"{number}.txt").write_text(f"a scene, no. {number}")
    Image.new("RGB", (64, 64), "grey").save(root / "grey.png")
    (root / "broken.png").write_bytes(encode(scene(99), "PNG")[:200])
    return root


def curation(storage: Path, root: Path, *overrides: str) -> Curation:
    words = [f"source.path={root}", "perturb.steps=1", "select.negligible=false", *overrides]
    return Curation(load(RunConfig, "tiny", words), place=in_folder(str(storage)))


def test_captions_reach_the_pairs_and_say_who_wrote_them(tmp_path, here, caplog):
    root = photographs(tmp_path / "photos", bare=3, captioned=2)
    model = model_that_says(tmp_path, *SAYS)
    made = curation(tmp_path / "run", root, f"captions.model={model}", "captions.dtype=float32")
    with caplog.at_level(logging.INFO):
        made.run(StreamConfig(part_rows=2))
    assert "captions: 4 written by says-something, 2 given, 1 left without" in caplog.messages
    assert not [m for m in caplog.messages if "have no caption" in m]
    photos = pd.read_parquet(tmp_path / "run" / "photos").set_index("uri")
    expected = {f"{n}.png": "says-something" if n < 3 else "given" for n in range(5)}
    assert photos["caption_source"].dropna().to_dict() == {**expected, "grey.png": "says-something"}
    assert photos.loc["0.png", "caption"] == "a crisp picture."
    assert photos.loc["4.png", "caption"] == "a scene, no. 4"
    assert photos.loc["broken.png", "status"] == "rejected"
    assert photos.loc["broken.png", "reason"] == "truncated", "not that it has no caption"
    pairs = pd.read_parquet(tmp_path / "run" / "pairs").set_index("id")
    assert len(pairs) >= 3 and pairs["caption_source"].to_dict() == {
        id_: expected[id_] for id_ in pairs.index
    }
    assert set(pairs["prompt"]) >= {"a crisp picture."}
    first = photograph_funnel(str(tmp_path / "run"), FILTERS)[0]  # of the page
    assert first.name == "photographs found, 4 captioned by says-something"
    card = (tmp_path / "run" / "pairs" / "_README.md").read_text()
    assert "got one from `says-something`" in card and "| `caption_source` |" in card
    assert str(tmp_path) not in card


def test_the_model_sees_no_photograph_that_has_a_caption(tmp_path, here, monkeypatch):
    root = photographs(tmp_path / "photos", bare=1, captioned=3)
    (root / "grey.txt").write_text("grey")
    seen = []

    def note(self: WriteCaption, rows: list[Row]) -> list[Row]:
        seen.extend(row["id"] for row in rows)
        return rows

    model = model_that_says(tmp_path, *SAYS)
    monkeypatch.setattr(WriteCaption, "prepare", note)
    monkeypatch.setattr(WriteCaption, "compute", lambda self, batch: ["a dog"] * len(batch))
    made = curation(tmp_path / "run", root, f"captions.model={model}")
    assert made.index.state() == "absent"
    written_index(made)
    made.write_captions(StreamConfig())
    assert set(seen) == {"0.png"}
    table = made.listed.table()
    assert dict(zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True)) == {
        "0.png": "a dog",
        "broken.png": None,
        "grey.png": "grey",
        **{f"{n}.png": f"a scene, no. {n}" for n in (1, 2, 3)},
    }
    seen.clear()
    made.write_captions(StreamConfig())
    assert not seen, "captions are kept"


def written_index(made: Curation) -> None:
    write_index(made.config.source, made.index, part_rows=2, bare=True)


def test_where_every_photograph_has_a_caption_no_model_is_loaded(tmp_path, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a worker was asked for")

    monkeypatch.setattr("raypref.curate.captions.stream", refuse)
    root = photographs(tmp_path / "photos", bare=0, captioned=2)
    for name in ("grey", "broken"):
        (root / f"{name}.txt").write_text(name)
    model = model_that_says(tmp_path, *SAYS)
    made = curation(tmp_path / "run", root, f"captions.model={model}")
    written_index(made)
    made.write_captions(StreamConfig())
    assert made.captions.state() == made.listed.state() == "complete"
    assert set(made.listed.table()["caption_source"].to_pylist()) == {"given"}


def test_without_the_model_nothing_changes(tmp_path):
    root = photographs(tmp_path / "photos", bare=1, captioned=2)
    made = curation(tmp_path / "run", root)
    assert made.listed is made.index
    assert "curate/captions" not in " ".join(ledger.path for ledger in made.ledgers)
    assert not [key for key in made.pairs.settings if key.startswith("captions")]
    assert not results_of({"captions": CaptionsConfig()}), "older fingerprints stay valid"
    assert "caption_source" not in made.entry


def test_another_model_or_prompt_makes_other_captions(tmp_path):
    root = photographs(tmp_path / "photos", bare=2, captioned=1)
    base = ["captions.model=owner/one"]
    prints = {
        curation(tmp_path, root, *words).pairs.fingerprint
        for words in (
            [],
            base,
            ["captions.model=owner/two"],
            [*base, "captions.prompt=What?"],
            [*base, "captions.max_tokens=9"],
        )
    }
    assert len(prints) == 5
    batch = [*base, "captions.resources.batch=1"]
    assert curation(tmp_path, root, *batch).pairs.fingerprint in prints


def test_the_refusal_names_the_setting(tmp_path):
    root = photographs(tmp_path / "photos", bare=2, captioned=0)
    source = SourceConfig(path=str(root))
    with pytest.raises(InputError, match=r"not one caption.*captions\.model=OWNER/REPO"):
        digest(source)
    assert digest(source, bare=True)


def test_a_model_of_another_kind_is_named(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(InputError, match=r"captions\.model"):
        CaptionsConfig(model=str(tmp_path / "clip")).folder()
    assert CaptionsConfig(model="owner/model").name == "owner/model"
    assert CaptionsConfig(model=str(tmp_path / "clip")).name == "clip"

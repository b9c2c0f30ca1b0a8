"""Labelled pairs of every published form: what people said, by whom it was made, in which order."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import encode, scene
from layout_examples import EXAMPLES, FIRST, SECOND, dump, pack
from PIL import Image
from published import curation

from raypref.core.config import InputError
from raypref.core.ledger import Ledger
from raypref.curate.export import Format, export
from raypref.judge.pairs import JudgeConfig
from raypref.sources.base import LabelledImage, Pair, Ref
from raypref.sources.index import SourceConfig, digest, entries
from raypref.sources.layouts import giving
from raypref.sources.pairs import (
    image_bytes,
    images_beside,
    labelled_images,
    labelled_pairs,
    recognise_images,
    recognise_pairs,
)
from raypref.sources.records import records
from raypref.sources.store import SourceError, locate

MAX = 10**6


def listed(path: Path, layout: str = "auto") -> list[Pair]:
    return list(labelled_pairs(locate(str(path)), layout))


def said(pair: Pair) -> tuple[Any, ...]:
    """What a pair says but where it lies."""
    return (pair.label, pair.first_model, pair.second_model, pair.confidence, pair.vote_share)


def read(path: Path, *refs: Ref) -> list[bytes]:
    store = locate(str(path))
    return [image_bytes(ref, store, images_beside(store), max_bytes=MAX) for ref in refs]


def reason(entry: Pair | LabelledImage) -> str:
    return entry.problem.partition(":")[0]


# ------------------------------------------------------------------ published datasets


def test_pick_a_pic_with_ties_missing_labels_and_images_that_do_not_differ(tmp_path):
    rows = [
        {"label_0": 1.0, "has_label": True, "are_different": True},
        {"label_0": 0.0, "has_label": True, "are_different": True},
        {"label_0": 0.5, "has_label": True, "are_different": True},
        {"label_0": 0.5, "has_label": False, "are_different": True},
        {"label_0": None, "has_label": True, "are_different": True},
        {"label_0": 0.5, "has_label": True, "are_different": False},
        {"label_0": 2.0, "has_label": True, "are_different": True},
    ]
    fixed = {"caption": "x", "jpg_0": FIRST, "jpg_1": SECOND, "model_0": "sdxl", "model_1": None}
    pq.write_table(pa.Table.from_pylist([fixed | row for row in rows]), tmp_path / "0.parquet")
    found = listed(tmp_path)
    assert [pair.label for pair in found] == [1.0, 0.0, 0.5, None, None, 0.5, None]
    assert [reason(pair) for pair in found] == [*[""] * 5, "same_image", "bad_label"]
    assert {(pair.first_model, pair.second_model) for pair in found} == {("sdxl", None)}
    assert read(tmp_path, found[1].first, found[1].second) == [FIRST, SECOND]


def test_pick_a_pic_without_images_says_so(tmp_path):
    table = pa.table({"caption": ["x"], "label_0": [1.0], "image_0_url": ["u"]})
    pq.write_table(table, tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"there are addresses of images .* no images"):
        listed(tmp_path)


def test_hpdv3_tells_generators_votes_and_confidence_of_both_sides(tmp_path):
    record = {"prompt": "x", "path1": "a.png", "path2": "b.png", "model1": "real_images"}
    record |= {"model2": "flux", "confidence": 0.75}
    votes: list[Any] = [[1, 3], [3, 1], [], "x", [0, 0], None]
    dump(tmp_path / "train.json", [record | {"choice_dist": each} for each in votes])
    first, second, *rest = listed(tmp_path)
    assert said(first) == (1.0, "real_images", "flux", 0.75, 0.75), "path1 has the most votes"
    assert said(second) == (0.0, "flux", "real_images", 0.75, 0.25), "the sides are swapped"
    assert (second.first, second.second) == (Ref("b.png"), Ref("a.png"))
    assert [pair.vote_share for pair in rest] == [None] * 4
    assert not any(map(reason, rest))


def test_ranks_make_pairs_and_equal_ranks_ties(tmp_path):
    record = {"id": "7", "prompt": "x", "generations": ["a", "b", "c"], "ranking": [2, 1, 2]}
    dump(tmp_path / "train.json", [record, record | {"models": ["m", "n", "o"]}])
    found = listed(tmp_path)
    assert [pair.label for pair in found] == [0.0, 0.5, 1.0] * 2
    models = [(pair.first_model, pair.second_model) for pair in found]
    assert models == [(None, None)] * 3 + [("m", "n"), ("m", "o"), ("n", "o")]
    judged = JudgeConfig(pairs=str(tmp_path), layout="imagereward").read()
    assert [pair.label for pair in judged] == [0.0, 1.0] * 2, "benchmarks count no equal ranks"


def test_a_record_that_is_misshapen_is_one_dropped_entry(tmp_path):
    good = {"prompt": "x", "generations": ["a", "b"], "ranking": [1, 2]}
    bad = [3, {}, good | {"ranking": [1]}, good | {"ranking": ["best", 2]}, good | {"prompt": 3}]
    dump(tmp_path / "train.json", [good, *bad, good | {"prompt": " "}])
    assert [reason(pair) for pair in listed(tmp_path, "imagereward")] == [
        "",
        *["bad_record"] * 5,
        "no_caption",
    ]


def test_imagerewards_rows_are_pairs_of_each_prompt_and_rated_images(tmp_path):
    columns = {
        "prompt_id": ["p", "p", "p", "q", "q", "p"],
        "prompt": ["x", "x", "x", "y", "y", "x"],
        "image": [FIRST, SECOND, FIRST, FIRST, SECOND, FIRST],
        "rank": [1, 2, 2, None, 1, 1],
        "overall_rating": [7, 4, 3, None, 5, 6],
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    found = listed(tmp_path)
    assert [pair.label for pair in found] == [1.0, 1.0, 0.5, None, None]
    assert [reason(pair) for pair in found] == [*[""] * 4, "bad_record"], "p comes again"
    images = list(labelled_images(locate(str(tmp_path)), "auto"))
    assert [image.score for image in images] == [7, 4, 3, None, 5, 6]


# ------------------------------------------------------------------ what raypref writes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    curation(folder)
    return folder


def expected(run: Path) -> list[tuple[str, bytes, bytes]]:
    table = Ledger(str(run / "pairs"), {}).table().to_pylist()
    rows = ((row["prompt"], row["chosen"]["bytes"], row["rejected"]["bytes"]) for row in table)
    return sorted(rows, reverse=True)  # by rank, as the files are


def test_a_pairs_ledger_is_a_source(run):
    found = listed(run / "pairs")
    assert [(p.prompt, *read(run / "pairs", p.first, p.second)) for p in found] == expected(run)
    assert {pair.label for pair in found} == {1.0}


@pytest.mark.parametrize("form", ["pickapic", "folders"])
def test_an_export_is_a_source(run, tmp_path, form: Format):
    export(Ledger(str(run / "pairs"), {}), Ledger(str(tmp_path / form), {}), form)
    found = listed(tmp_path / form)
    images = [read(tmp_path / form, pair.first, pair.second) for pair in found]
    ordered = [each if pair.label else each[::-1] for pair, each in zip(found, images, strict=True)]
    assert [(p.prompt, *each) for p, each in zip(found, ordered, strict=True)] == expected(run)


# ------------------------------------------------------------------ datasets


def test_what_datasets_saves_is_a_source_in_any_order(tmp_path):
    images = [Image.open(io.BytesIO(encode(scene(n, size=(24, 24)), "PNG"))) for n in range(60)]
    kinds = {"prompt": datasets.Value("string"), "chosen": datasets.Image()}
    kinds |= {"rejected": datasets.Image(), "chosen_model": datasets.Value("string")}
    columns = {"prompt": [str(n) for n in range(30)], "chosen": images[:30]}
    columns |= {"rejected": images[30:], "chosen_model": ["m"] * 30}
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    data.save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved" / "cache-0.arrow").write_bytes(b"what datasets computed")
    found = listed(tmp_path / "saved")
    assert [(pair.prompt, pair.first_model) for pair in found] == [(str(n), "m") for n in range(30)]
    order = [*range(30), *range(29, -1, -1), *random.Random(0).sample(range(30), 30)]
    for number in order:
        for data_, image in zip(
            read(tmp_path / "saved", found[number].first, found[number].second),
            (images[number], images[30 + number]),
            strict=True,
        ):
            assert Image.open(io.BytesIO(data_)).tobytes() == image.tobytes()


def test_a_damaged_arrow_file_is_refused_or_its_images_are_dropped(tmp_path):
    names = ("prompt", "chosen", "rejected")
    batch = pa.record_batch([["x"] * 9, [FIRST[:400]] * 9, [SECOND[:400]] * 9], names=names)
    with (
        pa.OSFile(str(tmp_path / "0.arrow"), "wb") as file,
        pa.ipc.new_stream(file, batch.schema) as w,
    ):
        w.write_batch(batch)
    whole, ends = (tmp_path / "0.arrow").read_bytes(), set()
    for seed in range(150):
        rng, data = random.Random(seed), bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(1000)] = rng.randrange(256)
        (tmp_path / "0.arrow").write_bytes(
            data[: rng.choice([len(data), rng.randrange(len(data))])]
        )
        try:
            found = listed(tmp_path, "labelled")
        except InputError as error:
            assert "\n" not in str(error), seed
            ends.add("refused")
            continue
        for pair in found:
            try:
                read(tmp_path, pair.first, pair.second)
                ends.add(reason(pair) or "used")
            except SourceError as error:
                ends.add(error.reason)
    assert {"refused", "used", "unreadable_file"} <= ends


def test_an_image_folder_with_metadata_names_two_images(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(FIRST)
    line = {"prompt": "x", "chosen_file_name": "a.png", "rejected_file_name": "b.png"}
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    [pair] = listed(tmp_path)
    assert (pair.first.file, pair.second.file) == ("train/a.png", "train/b.png")


def test_columns_of_a_table_say_all_that_a_pair_has(tmp_path):
    columns = "prompt,image_0,image_1,label,model_0,model_1,confidence,vote_share,gap\n"
    (tmp_path / "l.csv").write_text(columns + "x,a,b,0,m,n,0.5,0.25,1.5\nx,a,b,,,,,,\n")
    pair, bare = listed(tmp_path)
    assert pair[:3] == ("x", Ref("a"), Ref("b")) and said(pair) == (0.0, "m", "n", 0.5, 0.25)
    assert pair.gap == 1.5 and said(bare) == (None,) * 5 and bare.gap is None


# ------------------------------------------------------------------ shards


def test_samples_of_a_shard_are_whole_or_dropped(tmp_path):
    said_ = json.dumps({"prompt": "x", "label": 1, "model_0": "m", "vote_share": 0.9}).encode()
    escape = json.dumps({"prompt": "x", "chosen": "../a.png", "rejected": "b.png"}).encode()
    pack(
        tmp_path / "0.tar",
        *(("a.0.png", FIRST), ("a.1.png", SECOND), ("a.json", said_)),
        *(("b.chosen.png", FIRST), ("b.txt", b"no rejected image")),
        *(("c.chosen.png", FIRST), ("c.rejected.png", SECOND)),
        *(("d.json", escape),),
        *(("e.chosen.jpg", FIRST), ("e.rejected.jpg", SECOND), ("e.txt", b"caf\xe9")),
        *(("a.0.png", FIRST), ("a.1.png", SECOND), ("a.json", said_)),
    )
    found = listed(tmp_path)
    assert [reason(p) for p in found] == [
        "",
        *["bad_record"] * 2,
        "no_image",
        "no_caption",
        "",
    ]
    assert said(found[0]) == (1.0, "m", None, None, 0.9)
    assert [found[0].id, found[5].id] == ["0.tar#a", "0.tar#a//1"]
    assert read(tmp_path, found[5].first, found[5].second) == [FIRST, SECOND]


def test_a_damaged_shard_is_one_more_dropped_entry(tmp_path):
    EXAMPLES["webdataset"].pairs(tmp_path, SECOND, "")  # type: ignore[misc]
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:40_000])
    pack(tmp_path / "1.tar", ("c.chosen.png", FIRST), ("c.rejected.png", SECOND), ("c.txt", b"z"))
    first, last, damaged = listed(tmp_path)
    assert (first.prompt, last.prompt) == ("one", "z") and damaged.id == "0.tar#//damaged"
    assert reason(damaged) in ("unreadable_archive", "unreadable_file")


# ------------------------------------------------------------------ telling layouts apart


def test_what_is_not_recognised_is_named_with_the_layouts_there_are(tmp_path):
    (tmp_path / "a.csv").write_text("name,age\nx,3\n")
    with pytest.raises(InputError) as caught:
        recognise_pairs(locate(str(tmp_path)))
    message = str(caught.value)
    assert "a.csv has name, age" in message and "\n" not in message
    assert all(name in message for name in giving("pairs"))
    with pytest.raises(InputError, match=r"no labelled images in .*a\.csv has name, age"):
        recognise_images(locate(str(tmp_path)))
    (tmp_path / "a.csv").rename(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"there are only 1 \.zip files"):
        recognise_pairs(locate(str(tmp_path)))


def test_two_datasets_in_a_folder_are_named(tmp_path):
    for layout in ("labelled", "pickapic"):
        EXAMPLES[layout].write(tmp_path, SECOND, "b.png")
    with pytest.raises(
        InputError, match=r"looks like pickapic \(.*\) and labelled \(|and pickapic"
    ):
        recognise_pairs(locate(str(tmp_path)))
    assert recognise_pairs(locate(str(tmp_path / "labels.csv"))) == "labelled"


def test_a_layout_of_pairs_gives_no_photographs(tmp_path):
    EXAMPLES["labelled"].write(tmp_path, SECOND, "b.png")
    source = SourceConfig(path=str(tmp_path), layout="labelled")
    with pytest.raises(InputError, match=r"labelled gives labelled pairs, no photographs"):
        list(entries(source))
    with pytest.raises(InputError, match=r"civitai gives no labelled pairs; .*hpdv3"):
        listed(tmp_path, "civitai")


@pytest.mark.parametrize("name", ["", "labels.csv"])
def test_who_asks_for_photographs_where_labels_are_is_told(name, tmp_path):
    EXAMPLES["labelled"].write(tmp_path, SECOND, "b.png")
    with pytest.raises(InputError, match=r"layout labelled\): add pairs\.kind=labelled"):
        digest(SourceConfig(path=str(tmp_path / name)))


def test_the_example_in_python_counts(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "docs" / "labels.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    EXAMPLES["labelled"].write(tmp_path, SECOND, "b.png")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out == "labelled\nCounter({1.0: 1, 0.0: 1})\n"


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_listing_is_not_held_in_memory(form, tmp_path):
    count = 30_000
    row = {"prompt": "a cat on a table " * 10, "chosen": "a.png", "rejected": "b.png"}
    file = tmp_path / f"l.{form}"
    if form == "csv":
        lines = (",".join(row.values()) + "\n" for _ in range(count))
        file.write_text("prompt,chosen,rejected\n" + "".join(lines))
    elif form == "json":
        dump(file, [row] * count)
    else:
        pq.write_table(pa.Table.from_pylist([row] * count), file)
    tracemalloc.start()
    total = sum(1 for _ in labelled_pairs(locate(str(tmp_path)), "labelled"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == count and peak < 8e6, f"{peak} bytes; all rows are {count * 250}"


VALUES = [None, True, -1.5e3, 12345678901234567890, "", 'a"\\ü\n', [], [1, [2]], {}, {"a": [{}]}]


@pytest.mark.parametrize("chunk", [1, 2, 7, 2**20])
def test_a_json_list_is_read_as_by_the_library(chunk, tmp_path, monkeypatch):
    monkeypatch.setattr("raypref.sources.records.CHUNK", chunk)
    store = locate(str(tmp_path))
    for number, (indent, encoding) in enumerate(
        itertools.product((None, 3), ("utf-8", "utf-8-sig", "utf-16", "utf-32"))
    ):
        for values in ([], VALUES, VALUES[::-1], [1], [12, 3]):
            text = json.dumps(values, indent=indent, ensure_ascii=number % 2 == 0)
            (tmp_path / "a.json").write_text(f" {text} \n", encoding=encoding)
            assert list(records(store, "a.json")) == values


@pytest.mark.parametrize(
    "text", ["", " ", "[", "[1", "[1,", "[1,]", "[,]", "[1 2]", "[1]]", "[1] x", '["a', "[" * 9999]
)
def test_what_is_no_json_list_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json is not valid JSON") as caught:
        list(records(locate(str(tmp_path)), "a.json"))
    assert "\n" not in str(caught.value)
    for other in ("{}", "3", '"[]"', "null"):
        (tmp_path / "a.json").write_text(other)
        with pytest.raises(InputError, match=r"a\.json must hold a list"):
            list(records(locate(str(tmp_path)), "a.json"))

"""What every registered layout must do: a new one needs an example, and gets these tests."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from layout_examples import EXAMPLES, FIRST, OTHER, SECOND

from raypref.core.config import InputError, build
from raypref.images.decode import ImageConfig, decode, encode_png
from raypref.judge.pairs import JudgeConfig, Load
from raypref.sources.base import Layout, Pair
from raypref.sources.index import SourceConfig, digest, entries, fetch, index_schema
from raypref.sources.layouts import REGISTRY, giving
from raypref.sources.pairs import (
    image_bytes,
    labelled_images,
    labelled_pairs,
    recognise_images,
    recognise_pairs,
)
from raypref.sources.prompt_files import read_prompts
from raypref.sources.store import SourceError, locate

MAX = 10**6
OUTSIDE = "../secret.png"
PHOTOGRAPHS, PAIRS, IMAGES, PROMPTS = map(
    sorted, map(giving, ("photographs", "pairs", "images", "prompts"))
)


def naming_files(layouts: list[str]) -> list[str]:
    return [name for name in layouts if EXAMPLES[name].names_files]


def dataset(
    layout: str, folder: Path, *, second: bytes = SECOND, name: str = "b.png", what: str = ""
) -> Path:
    """The example's folder, with a photograph beside it that is none of its business."""
    root = folder / "set"
    root.mkdir()
    (folder / "secret.png").write_bytes(SECOND)
    example = EXAMPLES[layout]
    write = (getattr(example, what) if what else None) or example.write
    write(root, second, name)
    return root


def judged(config: JudgeConfig, pair: Pair, limits: ImageConfig | None = None) -> list[dict]:
    """The rows of a pair's images, the preferred one first, as a worker loads them."""
    load = Load(config)
    load.setup()
    load.limits = limits or load.limits
    rows = [pair.first._asdict(), pair.second._asdict()]
    load(rows)
    return rows if pair.label == 1 else rows[::-1]


def test_every_layout_has_an_example_and_gives_something():
    assert EXAMPLES.keys() == REGISTRY.keys(), "tests/layout_examples.py writes one of each"
    assert {*PHOTOGRAPHS, *PAIRS, *IMAGES, *PROMPTS} == set(REGISTRY)


@pytest.mark.parametrize("layout", PHOTOGRAPHS)
def test_photographs(layout, tmp_path):
    source = SourceConfig(path=str(dataset(layout, tmp_path)), layout=layout)
    rows = list(entries(source))
    assert pa.Table.from_pylist(rows, schema=index_schema(source)).to_pylist() == rows
    assert [row["id"] for row in rows] == list(EXAMPLES[layout].ids)
    found = [(row["caption"], fetch(row, source.store(), max_bytes=MAX)) for row in rows]
    assert found == [("one", FIRST), ("two", SECOND)]
    assert list(entries(source)) == rows
    assert [row["id"] for row in entries(source.model_copy(update={"limit": 1}))] == [rows[0]["id"]]


@pytest.mark.parametrize("layout", PHOTOGRAPHS)
def test_a_digest_is_of_what_is_listed(layout, tmp_path):
    root = dataset(layout, tmp_path)
    source = SourceConfig(path=str(root), layout=layout)
    listed = "".join(json.dumps(list(row.values())) for row in entries(source))
    before = digest(source)
    if not REGISTRY[layout].sampled:
        assert before == hashlib.sha256(listed.encode()).hexdigest()[:16]
    EXAMPLES[layout].write(root, SECOND + bytes(10**5), "b.png")
    assert digest(source) != before


@pytest.mark.parametrize("layout", naming_files(PHOTOGRAPHS))
def test_a_photograph_outside_the_source_is_not_read(layout, tmp_path):
    source = SourceConfig(path=str(dataset(layout, tmp_path, name=OUTSIDE)), layout=layout)
    [row] = [row for row in entries(source) if row["caption"] == "two"]
    with pytest.raises(SourceError) as caught:
        fetch(row, source.store(), max_bytes=MAX)
    assert caught.value.reason == "outside_root"


@pytest.mark.parametrize("layout", PHOTOGRAPHS)
def test_a_photograph_of_too_many_bytes_is_not_used(layout, tmp_path):
    root = dataset(layout, tmp_path, second=SECOND + bytes(MAX))
    source = SourceConfig(path=str(root), layout=layout)
    first, second = entries(source)
    assert fetch(first, source.store(), max_bytes=MAX) == FIRST
    with pytest.raises(SourceError) as caught:
        fetch(second, source.store(), max_bytes=MAX)
    assert caught.value.reason == "too_many_bytes"


@pytest.mark.parametrize("layout", PAIRS)
def test_pairs(layout, tmp_path):
    config = JudgeConfig(pairs=str(dataset(layout, tmp_path, what="pairs")), layout=layout)
    found = config.read()
    assert [pair.prompt for pair in found] == ["one", "two"]
    for pair, expected in zip(found, (FIRST, SECOND), strict=True):
        images = [row["image"] for row in judged(config, pair)]
        assert images == [_plain(expected), _plain(OTHER)]
    assert config.model_copy(update={"limit": 1}).read() == found[:1]


def _plain(data: bytes) -> bytes:
    return encode_png(decode(data, ImageConfig()))


@pytest.mark.parametrize("layout", naming_files(PAIRS))
def test_a_pair_with_an_image_outside_is_refused(layout, tmp_path):
    root = dataset(layout, tmp_path, name=OUTSIDE, what="pairs")
    said = rf"judge\.pairs: the image '{OUTSIDE}' lies outside of '{root}'"
    with pytest.raises(InputError, match=said):
        JudgeConfig(pairs=str(root), layout=layout).read()
    above = JudgeConfig(pairs=str(root), layout=layout, images=str(tmp_path), limit=1)
    assert len(above.read()) == 1, "judge.images names another folder"


@pytest.mark.parametrize("layout", PAIRS)
def test_an_image_of_too_many_bytes_in_a_pair_is_dropped(layout, tmp_path):
    root = dataset(layout, tmp_path, second=SECOND + bytes(MAX), what="pairs")
    config = JudgeConfig(pairs=str(root), layout=layout)
    preferred, other = judged(config, config.read()[1], ImageConfig(max_bytes=MAX))
    assert preferred["reject_reason"] == "too_many_bytes" and "image" in other


@pytest.mark.parametrize("layout", PAIRS)
def test_labelled_pairs_are_recognised_and_listed_alike_each_time(layout, tmp_path):
    store = locate(str(dataset(layout, tmp_path, what="pairs")))
    assert recognise_pairs(store) == layout
    found = list(labelled_pairs(store, "auto"))
    assert found == list(labelled_pairs(store, layout))
    assert len({pair.id for pair in found}) == len(found) == 2
    assert not any(pair.problem for pair in found)
    for pair, best in zip(found, (FIRST, SECOND), strict=True):
        read = [image_bytes(ref, store, store, max_bytes=MAX) for ref in (pair.first, pair.second)]
        assert read == ([best, OTHER] if pair.label == 1 else [OTHER, best])


@pytest.mark.parametrize("layout", IMAGES)
def test_labelled_images(layout, tmp_path):
    store = locate(str(dataset(layout, tmp_path, what="images")))
    assert recognise_images(store) == layout
    found = list(labelled_images(store, "auto"))
    assert found == list(labelled_images(store, layout))
    assert [(each.prompt, each.score, each.problem) for each in found] == [
        ("one", 1.0, ""),
        ("two", 0.0, ""),
    ]
    read = [image_bytes(each.image, store, store, max_bytes=MAX) for each in found]
    assert read == [FIRST, SECOND] and len({each.id for each in found}) == 2


@pytest.mark.parametrize("layout", PROMPTS)
def test_prompts(layout, tmp_path):
    root = dataset(layout, tmp_path)
    file = root / EXAMPLES[layout].prompts
    assert [prompt.text for prompt in read_prompts(str(file), limit=None)] == ["one", "two"]


@pytest.mark.parametrize("layout", PROMPTS)
def test_prompts_outside_their_folder_are_not_read(layout, tmp_path):
    """But where the person names the link itself, they want what it leads to."""
    file = dataset(layout, tmp_path) / EXAMPLES[layout].prompts
    link = tmp_path / "prompts" / file.name
    link.parent.mkdir()
    link.symlink_to(file)
    assert len(read_prompts(str(link), limit=None)) == 2
    with pytest.raises(InputError, match=f"{link} cannot be read: it is a link out of its folder"):
        read_prompts(str(link.parent), limit=None)


@pytest.mark.parametrize(
    ("section", "layouts"), [(SourceConfig, ["auto", *giving("photographs")]), (JudgeConfig, PAIRS)]
)
def test_a_name_that_is_no_layout_is_refused_with_those_there_are(section, layouts):
    with pytest.raises(InputError) as caught:
        build(section, {"path": "x", "layout": "mine"} if "auto" in layouts else {"layout": "mine"})
    assert all(name in str(caught.value) for name in ("layout='mine'", *layouts))


def test_a_worker_reads_an_image_whose_layout_it_does_not_know(tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "mine", Layout(photographs=REGISTRY["jsonl"].photographs))
    source = SourceConfig(path=str(dataset("jsonl", tmp_path)), layout="mine")
    rows, sent = list(entries(source)), pickle.dumps(source)
    monkeypatch.undo()
    arrived = pickle.loads(sent)
    assert [fetch(row, arrived.store(), max_bytes=MAX) for row in rows] == [FIRST, SECOND]

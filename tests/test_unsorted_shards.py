"""Shards as people pack them: masks under a photograph's key, captions far from their images."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
from test_shards import JPEG, OTHER, ended, index, shard

from raypref.core.config import InputError
from raypref.core.ledger import Ledger
from raypref.sources.index import SourceConfig, fetch, write_index
from raypref.sources.store import locate

Members = list[tuple[str, bytes]]


def captions(path: Path) -> dict[str, str | None]:
    """Member to caption, in the order of the index."""
    return {row["id"].partition("#")[2]: row["caption"] for row in index(path)}


def test_masks_and_class_maps_are_no_photographs(tmp_path: Path) -> None:
    members: Members = []
    for stem in ("a", "b.c/b", "d"):
        members += [(f"{stem}.jpg", JPEG), (f"{stem}.mask.png", OTHER), (f"{stem}.seg.png", OTHER)]
        members += [(f"{stem}.txt", stem.encode())]
    shard(tmp_path / "0.tar", members)
    outcome = dict(ended(tmp_path))
    assert {name for name, end in outcome.items() if end == "ok"} == {
        f"0.tar#{stem}.jpg" for stem in ("a", "b.c/b", "d")
    }
    assert sorted(outcome.values()) == ["not_a_photograph"] * 6 + ["ok"] * 3
    problem = next(row["problem"] for row in index(tmp_path) if row["id"] == "0.tar#a.seg.png")
    assert problem.endswith("a.seg.png belongs to a.jpg and has no caption of its own")


def test_masks_are_known_wherever_they_lie(tmp_path: Path) -> None:
    blocks = [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.depth.png", OTHER), ("b.depth.png", OTHER)]
    shard(tmp_path / "0.tar", [*blocks, ("a.txt", b"a"), ("b.txt", b"b")])
    shard(tmp_path / "1.tar", [("a.mask.png", OTHER), ("a.txt", b"a"), ("a.jpg", JPEG)])
    assert dict(ended(tmp_path)) == {
        "0.tar#a.jpg": "ok",
        "0.tar#b.jpg": "ok",
        "0.tar#a.depth.png": "not_a_photograph",
        "0.tar#b.depth.png": "not_a_photograph",
        "1.tar#a.mask.png": "not_a_photograph",
        "1.tar#a.jpg": "ok",
    }


def test_a_second_suffix_with_its_own_text_or_without_a_plain_image_stays(tmp_path: Path) -> None:
    shard(
        tmp_path / "0.tar",
        [
            *(("photo.jpg", JPEG), ("photo.txt", b"plain")),
            *(("photo.0001.jpg", JPEG), ("photo.0001.txt", b"first")),
            *(("set.0001.jpg", JPEG), ("set.0001.txt", b"one"), ("set.0002.jpg", JPEG)),
            *(("pair.left.png", OTHER), ("pair.right.png", OTHER), ("pair.txt", b"both")),
        ],
    )
    assert captions(tmp_path) == {
        "photo.jpg": "plain",
        "photo.0001.jpg": "first",
        "set.0001.jpg": "one",
        "set.0002.jpg": None,
        "pair.left.png": "both",
        "pair.right.png": "both",
    }


@pytest.mark.parametrize("seed", range(6))
def test_captions_anywhere_in_the_shard_are_found_and_rows_keep_the_tars_order(
    seed: int, tmp_path: Path
) -> None:
    names = [f"set/{number:02d}" for number in range(12)]
    ends = [(".txt", "{}"), (".json", '{{"caption": "{}"}}'), (".caption", "{}")]
    members: Members = [(f"{name}.jpg", JPEG + name.encode()) for name in names]
    for number, name in enumerate(names):
        end, text = ends[number % 3]
        members.append((name + end, text.format(name).encode()))
    random.Random(seed).shuffle(members)
    shard(tmp_path / "0.tar", members)
    images = [name for name, _ in members if name.endswith(".jpg")]
    assert captions(tmp_path) == {name: name[:-4] for name in images}
    assert list(captions(tmp_path)) == images
    store = locate(str(tmp_path))
    read = [fetch(row, store, max_bytes=10**6) for row in index(tmp_path)]
    assert read == [JPEG + name[:-4].encode() for name in images]


def test_a_name_twice_with_both_captions_later(tmp_path: Path) -> None:
    twice = [("a.jpg", JPEG), ("x.jpg", JPEG), ("a.jpg", OTHER), ("x.txt", b"x")]
    shard(tmp_path / "0.tar", [*twice, ("a.txt", b"1"), ("x.cls", b""), ("a.txt", b"2")])
    assert captions(tmp_path) == {"a.jpg": "1", "x.jpg": "x", "a.jpg//1": "2"}


def test_a_caption_in_another_shard_or_of_another_key_is_none(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", [("a.jpg", JPEG), ("b.jpg", JPEG), ("b.txt", b"b")])
    shard(tmp_path / "1.tar", [("a.txt", b"a"), ("sub/b.jpg", JPEG)])
    assert captions(tmp_path) == {"a.jpg": None, "b.jpg": "b", "sub/b.jpg": None}


def test_a_caption_that_cannot_be_read_says_so_wherever_it_lies(tmp_path: Path) -> None:
    shard(
        tmp_path / "0.tar",
        [("a.jpg", JPEG), ("b.jpg", JPEG), ("a.txt", b"caf\xe9"), ("b.txt", b"b")],
    )
    assert dict(ended(tmp_path)) == {"0.tar#a.jpg": "bad_encoding", "0.tar#b.jpg": "ok"}


def test_captions_that_wait_have_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raypref.sources.layouts.webdataset.WAITING", 8)
    texts = [(f"{n}.txt", b"123456") for n in range(3)]
    shard(tmp_path / "0.tar", [*((f"{n}.jpg", JPEG) for n in range(3)), *texts])
    assert captions(tmp_path) == {"0.jpg": "123456", "1.jpg": None, "2.jpg": None}


def test_other_forms_of_names_and_double_suffixes(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    shard(
        tmp_path / "0.tar",
        [
            *((f"{decomposed}.jpg", JPEG), ("café.txt", b"composed")),
            *(("b.jpg", JPEG), ("b.jpg.txt", b"double"), ("c.JPG", JPEG), ("c.TXT", b"upper")),
            *(
                ("__MACOSX/d.jpg", JPEG),
                (".hidden/d.jpg", JPEG),
                ("./e.jpg", JPEG),
                ("./e.txt", b"e"),
            ),
        ],
    )
    expected = {
        f"{decomposed}.jpg": "composed",
        "b.jpg": "double",
        "c.JPG": "upper",
        "./e.jpg": "e",
    }
    assert captions(tmp_path) == expected


def test_a_shard_that_was_not_fetched_is_named_as_such(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    (tmp_path / "0.tar").write_bytes(pointer)
    (tmp_path / "1.tar").write_bytes(b"")
    shard(tmp_path / "2.tar", [("a.jpg", JPEG), ("a.txt", b"a")])
    problems = [row["problem"] for row in index(tmp_path)]
    assert problems[0].endswith("0.tar is a Git LFS pointer; run 'git lfs pull'")
    assert problems[1].endswith("1.tar is empty")
    assert problems[2] is None


def test_a_key_of_json_can_be_named_and_then_counts_for_the_digest(tmp_path: Path) -> None:
    from raypref.sources.index import digest, entries

    shard(
        tmp_path / "0.tar", [("a.jpg", JPEG), ("a.json", b'{"llava": "long", "caption": "short"}')]
    )
    plain = SourceConfig(path=str(tmp_path))
    named = SourceConfig(path=str(tmp_path), caption_column="llava")
    assert [row["caption"] for row in (*entries(plain), *entries(named))] == ["short", "long"]
    assert digest(plain) != digest(named)


def test_without_a_single_caption_the_error_speaks_of_shards(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    shard(tmp_path / "set" / "0.tar", [("a.jpg", JPEG), ("b.jpg", JPEG)])
    with pytest.raises(InputError, match=r"2 photographs .* not one caption; add a photo\.txt for"):
        write_index(
            SourceConfig(path=str(tmp_path / "set")), Ledger(str(tmp_path / "l"), {}), part_rows=9
        )

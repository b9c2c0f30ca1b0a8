"""Parquet files of images: their rows, files that unpack to more than they say, damaged ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import encode, scene
from test_sources import JPEG, captions, index, read, reason

from raypref.core.config import InputError
from raypref.sources import cells
from raypref.sources.index import SourceConfig, entries, fetch
from raypref.sources.store import locate

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def parquet(path: Path, images: Any, texts: Any, *, kind: pa.DataType, column: str, **how: Any):
    """Write a Parquet file of images and captions."""
    path.parent.mkdir(exist_ok=True)
    values = pa.table({"number": range(len(images)), column: pa.array(images, kind), "text": texts})
    pq.write_table(values, path, **how)


@pytest.mark.parametrize("kind", [pa.binary(), STRUCT, pa.large_binary()])
def test_parquet_images(kind, tmp_path):
    """Bytes or Hugging Face's image struct, over several row groups and files."""
    images = [encode(scene(i), "JPEG") for i in range(5)]
    values = [{"bytes": i, "path": None} for i in images] if kind == STRUCT else images
    root = tmp_path / "set"
    parquet(
        root / "0.parquet", values[:3], list("abc"), kind=kind, column="image", row_group_size=2
    )
    parquet(root / "1.parquet", values[3:], ["d", None], kind=kind, column="jpg")
    rows = index(root)
    assert [row["caption"] for row in rows] == ["a", "b", "c", "d", None]
    assert [(row["uri"], row["member"]) for row in rows] == [
        *(("0.parquet", i) for i in range(3)),
        *(("1.parquet", i) for i in range(2)),
    ]
    assert len({row["id"] for row in rows}) == 5
    assert [read(row, root) for row in rows] == images
    assert reason(rows[0] | {"member": 3}, root) == "no_image"
    assert reason(rows[4], root, max_bytes=len(images[4]) - 1) == "too_many_bytes"
    one = index(root / "0.parquet")
    assert one == rows[:3]
    assert read(one[1], root / "0.parquet") == images[1]


def test_a_small_file_that_unpacks_to_gigabytes_is_not_read(tmp_path, monkeypatch):
    zeros = bytes(2**20)
    how = {"compression": "zstd", "use_dictionary": False}
    parquet(tmp_path / "a.parquet", [zeros] * 8, ["x"] * 8, kind=pa.binary(), column="image", **how)
    assert (tmp_path / "a.parquet").stat().st_size < 2**16
    monkeypatch.setattr(cells, "GROUP_BYTES", 2**22)
    assert {reason(row, tmp_path) for row in index(tmp_path)} == {"too_many_bytes"}


def test_captions_that_unpack_to_gigabytes_are_not_read(tmp_path, monkeypatch):
    texts = pa.table({"caption": [f"{n}" + "x" * 2**20 for n in range(8)], "image": [JPEG] * 8})
    pq.write_table(texts, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 2**16
    monkeypatch.setattr(cells, "GROUP_BYTES", 2**22)
    with pytest.raises(InputError, match=r"a\.parquet: the captions of a row group take \d+ bytes"):
        index(tmp_path)


def test_a_file_that_names_one_value_for_every_row_is_not_unpacked(tmp_path):
    """Its metadata tells the bytes of the value once."""
    value, text = os.urandom(2**20), "x" * 2**20
    pq.write_table(
        pa.table({"image": [value] * 500, "caption": [text] * 500}),
        tmp_path / "a.parquet",
        dictionary_pagesize_limit=2**21,
    )
    assert (tmp_path / "a.parquet").stat().st_size < 2 * 2**20
    before = pa.total_allocated_bytes()
    listed = iter(entries(SourceConfig(path=str(tmp_path))))
    first = next(listed)
    assert pa.total_allocated_bytes() - before < 2**26
    rows = [first, *listed]
    assert {len(row["caption"]) for row in rows} == {2000}
    assert {row["problem"].partition(":")[0] for row in rows} == {"caption_too_long"}
    for row in (rows[0], rows[250], rows[499], rows[3]):
        assert fetch(row, locate(str(tmp_path)), max_bytes=2**21) == value
        assert pa.total_allocated_bytes() - before < 2**26


def test_more_than_ten_rows_of_a_parquet_file_stay_in_order(tmp_path):
    parquet(tmp_path / "a.parquet", [JPEG] * 12, ["x"] * 12, kind=pa.binary(), column="png")
    assert [row["member"] for row in index(tmp_path)] == list(range(12))


def test_a_path_in_an_image_struct_is_never_followed(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    values = [
        {"bytes": None, "path": str(tmp_path / "secret.jpg")},
        {"bytes": None, "path": "secret.jpg"},
        None,
    ]
    parquet(tmp_path / "a.parquet", values, ["x"] * 3, kind=STRUCT, column="image")
    rows = index(tmp_path, layout="parquet")
    assert [reason(row, tmp_path) for row in rows] == ["no_image"] * 3


def test_captions_that_are_no_text_are_none(tmp_path):
    raw = pa.array([b"sound", b"broken \xff"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    parquet(tmp_path / "a.parquet", [JPEG] * 2, texts, kind=pa.binary(), column="image")
    assert list(captions(tmp_path).values()) == ["sound", None]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image": [JPEG], "label": [1]}, "no caption column; .* found image, label"),
        ({"picture": [JPEG], "text": ["x"]}, "no image column; .* found picture, text"),
    ],
)
def test_a_parquet_file_without_the_columns_is_named(columns, says, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"a\.parquet: {says}"):
        index(tmp_path)


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"a\.parquet is not a sound Parquet file"):
        index(tmp_path)


def test_damaged_pages_of_images_become_rejects(tmp_path):
    noise = [np.random.default_rng(i).bytes(10_000) for i in range(4)]
    file = tmp_path / "a.parquet"
    how = {"compression": "zstd", "use_dictionary": False}
    parquet(file, noise, list("abcd"), kind=pa.binary(), column="image", **how)
    column = pq.ParquetFile(file).metadata.row_group(0).column(1)
    assert column.path_in_schema == "image"
    data = bytearray(file.read_bytes())
    start = column.data_page_offset
    data[start : start + 60] = b"\0" * 60
    file.write_bytes(data)
    rows = index(tmp_path)
    assert [row["caption"] for row in rows] == list("abcd")
    assert {reason(row, tmp_path) for row in rows} == {"unreadable_file"}


def test_containers_in_folders_below_are_found(tmp_path):
    parquet(tmp_path / "data" / "0.parquet", [JPEG], ["x"], kind=pa.binary(), column="image")
    (tmp_path / "README.md").write_text("a dataset")
    assert captions(tmp_path) == {"data/0.parquet#000000000": "x"}


def test_each_caption_of_a_list_is_an_input(tmp_path):
    lists = [["one", "two", "three"], ["alone"], [], None, [None, "last"]]
    for number, kind in enumerate([pa.list_(pa.string()), pa.large_list(pa.large_string())]):
        texts = pa.array(lists, kind)
        file = tmp_path / f"{number}.parquet"
        parquet(file, [JPEG] * 5, texts, kind=pa.binary(), column="image", row_group_size=2)
    expected = {
        "#000000000": "one",
        "#000000000//1": "two",
        "#000000000//2": "three",
        "#000000001": "alone",
        "#000000002": None,
        "#000000003": None,
        "#000000004": "last",
    }
    both = {f"{n}.parquet{end}": text for n in range(2) for end, text in expected.items()}
    assert captions(tmp_path) == both
    assert {read(row, tmp_path) for row in index(tmp_path)} == {JPEG}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"image": [JPEG], "text": [{"en": "x"}]}, "text holds struct.*source.caption_column"),
        ({"image": [JPEG], "text": [[{"en": "x"}]]}, "text holds list.*source.caption_column"),
        ({"image": [JPEG], "text": [3]}, "text holds int64.*source.caption_column"),
        ({"image": [["a.jpg"]], "text": ["x"]}, "image holds list.*source.image_column"),
        ({"image": [{"path": "a.jpg"}], "text": ["x"]}, "image holds struct.*source.image_column"),
    ],
    ids=["struct", "list of structs", "number", "list of paths", "struct without bytes"],
)
def test_a_column_of_another_kind_is_refused_in_a_line(columns, says, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=rf"^a\.parquet: the column {says}") as caught:
        index(tmp_path)
    assert "\n" not in str(caught.value)


def test_columns_can_be_named(tmp_path):
    table = {"image": [b"no"], "photo": [JPEG], "TEXT": ["x"], "caption": ["y"]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    (row,) = index(tmp_path, image_column="photo", caption_column="TEXT")
    assert (row["column"], row["caption"], read(row, tmp_path)) == ("photo", "x", JPEG)
    with pytest.raises(InputError, match="no caption column; looked for llava, found image"):
        index(tmp_path, caption_column="llava")


def test_columns_of_a_dictionary_are_what_its_entries_are(tmp_path):
    texts = pa.array(["x", "y", "x"]).dictionary_encode()
    images = pa.array([JPEG] * 3, pa.binary()).dictionary_encode()
    pq.write_table(pa.table({"image": images, "caption": texts}), tmp_path / "a.parquet")
    assert list(captions(tmp_path).values()) == ["x", "y", "x"]
    assert {read(row, tmp_path) for row in index(tmp_path)} == {JPEG}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda whole: POINTER, "is a Git LFS pointer; run 'git lfs pull'"),
        (lambda whole: b"", "is empty"),
        (lambda whole: whole[: len(whole) // 2], "is not a sound Parquet file"),
    ],
    ids=["lfs", "empty", "cut"],
)
@pytest.mark.parametrize("bad", range(3))
def test_one_file_that_is_none_is_dropped_with_its_reason(spoil, says, bad, tmp_path):
    for number in range(3):
        file = tmp_path / f"{number}.parquet"
        parquet(file, [JPEG] * 4, list("abcd"), kind=pa.binary(), column="image")
        if number == bad:
            file.write_bytes(spoil(file.read_bytes()))
    rows = index(tmp_path)
    assert [row["caption"] for row in rows] == [*"abcd", *"abcd", None]
    assert rows[-1]["id"] == f"{bad}.parquet#//damaged"
    assert rows[-1]["problem"].startswith(f"unreadable_file: {bad}.parquet {says}")
    (tmp_path / f"{bad}.parquet").rename(tmp_path / "alone")
    with pytest.raises(InputError, match=f"{tmp_path}.*{says}"):
        index(only(tmp_path))


def only(root: Path) -> Path:
    """A folder that holds the bad file alone."""
    (root / "only").mkdir()
    return (root / "alone").rename(root / "only" / "x.parquet").parent

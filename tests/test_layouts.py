"""How a source is laid out is told by what lies there, and an error names what was seen instead."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_folder import files, photos
from test_shards import shard
from test_sources import JPEG, captions, index

from raypref.core.config import InputError
from raypref.sources.index import SourceConfig, digest


def lines(key: str, names: list[str]) -> str:
    return "".join(json.dumps({key: name, "caption": name}) + "\n" for name in names)


def refused(path: Path, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        digest(SourceConfig(path=str(path), **settings))
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.mark.parametrize("name", ["metadata1000.jsonl", "lists/train.jsonl"])
def test_an_index_beside_photographs_without_captions_is_used(name, tmp_path):
    up = "../" * name.count("/")
    index = lines("image", [f"{up}images/a.jpg", f"{up}images/b.jpg"])
    files(tmp_path, photos("images/a.jpg", "images/b.jpg") | {name: index})
    assert list(captions(tmp_path).values()) == [f"{up}images/a.jpg", f"{up}images/b.jpg"]
    assert list(captions(tmp_path / name).values()) == [f"{up}images/a.jpg", f"{up}images/b.jpg"]


def test_an_index_beside_photographs_that_have_captions_is_not_asked(tmp_path):
    files(tmp_path, photos("a.jpg", "b.jpg") | {"a.txt": "a", "x.jsonl": lines("file", ["b.jpg"])})
    assert captions(tmp_path) == {"a.jpg": "a", "b.jpg": None}


def test_a_log_beside_photographs_is_no_index(tmp_path):
    files(tmp_path, photos("a.jpg") | {"log.jsonl": '{"event": "start"}\n'})
    assert "beside them lies log.jsonl" in refused(tmp_path)


def img2dataset(root: Path, name: str = "00000.parquet") -> None:
    """The table that it leaves beside what it fetched."""
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"], "key": ["0"]}), root / name)


def test_img2datasets_table_is_no_data_beside_its_folder_or_shard(tmp_path):
    root = files(
        tmp_path / "files",
        photos("00000/0.jpg", "00000/1.jpg")
        | {"00000/0.txt": "zero", "00000/1.txt": "", "00000/0.json": '{"caption": "zero"}'},
    )
    img2dataset(root)
    assert captions(root) == {"00000/0.jpg": "zero", "00000/1.jpg": ""}
    (tmp_path / "tars").mkdir()
    shard(tmp_path / "tars" / "00000.tar", [("0.jpg", JPEG), ("0.txt", b"zero")])
    img2dataset(tmp_path / "tars")
    assert captions(tmp_path / "tars") == {"00000.tar#0.jpg": "zero"}


def test_a_parquet_file_alone_still_says_which_columns_it_lacks(tmp_path):
    img2dataset(tmp_path)
    with pytest.raises(InputError, match=r"00000\.parquet: no image column.*source\.image_column"):
        index(tmp_path)


def test_a_table_of_paths_beside_its_photographs(tmp_path):
    root = files(tmp_path, photos("images/a.jpg", "images/b.jpg"))
    table = {"image": ["images/a.jpg", "images\\B.jpg"], "text": ["a", "b"]}
    pq.write_table(pa.table(table), root / "train.parquet")
    rows = index(root)
    assert [(row["uri"], row["caption"], row["column"]) for row in rows] == [
        ("images/a.jpg", "a", None),
        ("images/b.jpg", "b", None),
    ]
    assert [row["size"] for row in rows] == [len(JPEG)] * 2


def test_hugging_faces_metadata_parquet_names_files_beside_it(tmp_path):
    root = files(tmp_path, photos("train/a.jpg"))
    table = pa.table({"file_name": ["a.jpg"], "text": ["a"]})
    pq.write_table(table, root / "train" / "metadata.parquet")
    assert [row["uri"] for row in index(root, layout="parquet")] == ["train/a.jpg"]


@pytest.mark.parametrize(
    ("content", "settings", "says"),
    [
        ({"a.tags": "x", "b.tags": "y"}, {}, ["2 photographs", "2 .tags files", "captions.csv"]),
        ({"all.tsv": "a\tb"}, {}, ["beside them lies all.tsv", "captions.csv"]),
        ({"a.json": '{"tags": 3}'}, {}, ["1 .json files without a caption"]),
        ({"x.jsonl": '{"file": "a.jpg", "TEXT": "x"}\n'}, {"layout": "jsonl"}, ["caption_column"]),
        (
            {"x.jsonl": '{"photo": "a.jpg", "caption": "x"}\n'},
            {"layout": "jsonl"},
            ["not one of 1 entries", "line 1 of x.jsonl is no JSON object with a file", "image"],
        ),
        ({"a.txt": b"caf\xe9", "b.txt": b"\xff"}, {}, ["not one of 2", "a.txt is not UTF-8"]),
    ],
    ids=["other suffix", "other table", "other key", "jsonl key", "jsonl path", "latin-1"],
)
def test_without_a_single_caption_the_error_says_what_was_seen(content, settings, says, tmp_path):
    root = files(tmp_path, photos("a.jpg", "b.jpg") | content)
    message = refused(root, **settings)
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"photos.zip": "PK", "b.zip": "", "x.ARW": ""}, "there are only 2 .zip, 1 .ARW files"),
        ({}, "there are no files"),
        ({".hidden/a.jpg": JPEG}, "there are no files"),
    ],
)
def test_a_source_without_photographs_says_what_lies_there(content, says, tmp_path):
    files(tmp_path, content)
    assert f"no photographs in '{tmp_path}', {says}; expected" in refused(tmp_path)


def test_columns_of_jsonl_can_be_named(tmp_path):
    text = '{"photo": "a.jpg", "TEXT": "x", "caption": "y", "file": "b.jpg"}\n'
    root = files(tmp_path, photos("a.jpg", "b.jpg") | {"x.jsonl": text})
    rows = index(root / "x.jsonl", image_column="photo", caption_column="TEXT")
    assert [(row["uri"], row["caption"]) for row in rows] == [("a.jpg", "x")]

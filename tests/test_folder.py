"""Captions of a folder: files and tables beside photographs, and names that mean the same file."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from corpus import encode, scene
from test_sources import JPEG, captions, index, read

OTHER = encode(scene(1), "JPEG")


def files(root: Path, content: dict[str, bytes | str]) -> Path:
    """Write files, their folders too."""
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def photos(*names: str) -> dict[str, bytes | str]:
    return dict.fromkeys(names, JPEG)


def test_the_files_that_taggers_and_downloaders_write(tmp_path):
    root = files(
        tmp_path,
        photos("img/10_a b/1.jpg", "img/10_a b/2.jpg", "3.jpg", "4.JPG", "5.jpg", "6.jpg")
        | {
            "img/10_a b/1.caption": "one\n",
            "img/10_a b/2.txt": "two",
            "img/10_a b/2.caption": "not this one",
            "3.jpg.txt": "three",
            "4.JPG.json": json.dumps({"caption": "four"}),
            "5.TXT": "five",
            "6.jpg.caption": "six",
        },
    )
    assert captions(root) == {
        "img/10_a b/1.jpg": "one",
        "img/10_a b/2.jpg": "two",
        "3.jpg": "three",
        "4.JPG": "four",
        "5.jpg": "five",
        "6.jpg": "six",
    }


def test_an_empty_file_is_no_last_word(tmp_path):
    """img2dataset writes an empty .txt where the caption is empty, and a .json always."""
    root = files(
        tmp_path,
        photos("a.jpg", "b.jpg", "c.jpg")
        | {"a.txt": "", "a.json": '{"caption": "a"}', "b.txt": " \n", "b.json": '{"url": "x"}'},
    )
    assert captions(root) == {"a.jpg": "a", "b.jpg": "", "c.jpg": None}


def test_each_folder_may_have_its_table(tmp_path):
    root = files(
        tmp_path,
        photos("top.jpg", "spring/a.jpg", "summer/a.jpg", "summer/b.jpg", "autumn/a.jpg")
        | {
            "captions.csv": "file,caption\ntop.jpg,top\nsummer/b.jpg,from above\n",
            "spring/captions.csv": "file,caption\na.jpg,one\na.jpg,two\ngone.jpg,x\n",
            "summer/captions.csv": "file,caption\na.jpg,summer\nb.jpg,from here\n",
            "autumn/a.txt": "autumn",
        },
    )
    assert captions(root) == {
        "top.jpg": "top",
        "spring/a.jpg": "one",
        "spring/a.jpg//1": "two",
        "spring/gone.jpg": "x",
        "summer/a.jpg": "summer",
        "summer/b.jpg": "from above",
        "autumn/a.jpg": "autumn",
    }


def test_a_broken_table_in_a_folder_below_is_dropped_with_its_reason(tmp_path):
    root = files(
        tmp_path,
        photos("a.jpg", "b/a.jpg")
        | {"a.txt": "a", "b/captions.csv": "file|caption\na.jpg|x\n", "b/a.txt": "beside"},
    )
    rows = {row["id"]: row for row in index(root)}
    assert {id_: row["caption"] for id_, row in rows.items()} == {
        "a.jpg": "a",
        "b/a.jpg": "beside",
        "b/captions.csv#//damaged": None,
    }
    assert "must name the columns file and caption" in rows["b/captions.csv#//damaged"]["problem"]


def imagefolder(kind: str, lines: list[tuple[str, str]]) -> str:
    if kind == "csv":
        return "file_name,text\n" + "".join(f"{name},{text}\n" for name, text in lines)
    return "".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in lines)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_hugging_faces_imagefolder(kind, tmp_path):
    name = f"metadata.{kind}"
    root = files(
        tmp_path,
        photos("train/a.jpg", "train/b.jpg", "test/a.jpg", "test/c.jpg")
        | {
            f"train/{name}": imagefolder(kind, [("a.jpg", "a"), ("b.jpg", "b"), ("b.jpg", "b2")]),
            f"test/{name}": imagefolder(kind, [("a.jpg", "other"), ("c.jpg", "c")]),
            "test/c.txt": "the file beside it",
        },
    )
    expected = {
        "train/a.jpg": "a",
        "train/b.jpg": "b",
        "train/b.jpg//1": "b2",
        "test/a.jpg": "other",
        "test/c.jpg": "the file beside it",
    }
    assert captions(root) == expected
    assert captions(root, layout="folder") == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "id;width\n1;2\n"),
        ("metadata.csv", "id,width\n1,2,3\n"),
        ("metadata.jsonl", '{"id": 1}\n{"id": 2}\n'),
        ("metadata.jsonl", "{broken"),
        ("sub/metadata.jsonl", ""),
    ],
)
def test_metadata_of_something_else_changes_nothing(name, text, tmp_path):
    root = files(tmp_path, photos("a.jpg", "b.jpg") | {"a.txt": "a"})
    before = index(root)
    files(root, {name: text})
    assert index(root) == before


def test_names_in_another_unicode_form_slashes_and_case(tmp_path):
    """The bytes read are those of the file that is there; the exact name wins."""
    decomposed = unicodedata.normalize("NFD", "café.jpg")
    names = [decomposed, "Sub/B.JPG", "c.jpg", "C.jpg", "d.jpg"]
    root = files(
        tmp_path, photos(*names) | {"c.jpg": OTHER, "n\u0303.jpg": JPEG, "\xf1.caption": "ñ"}
    )
    table = (
        "file,caption\ncafé.jpg,composed\nsub\\b.jpg,slashes\nC.jpg,upper\nc.jpg,lower\nD.JPG,d\n"
    )
    files(root, {"captions.csv": table})
    rows = {row["id"]: row for row in index(root)}
    assert {id_: row["caption"] for id_, row in rows.items()} == {
        decomposed: "composed",
        "Sub/B.JPG": "slashes",
        "C.jpg": "upper",
        "c.jpg": "lower",
        "d.jpg": "d",
        "n\u0303.jpg": "ñ",
    }
    assert read(rows["c.jpg"], root) == OTHER
    assert read(rows[decomposed], root) == JPEG


def test_a_name_that_could_mean_several_files_means_none(tmp_path):
    root = files(tmp_path, photos("c.jpg", "C.jpg", "img.jpg", "IMG.jpg"))
    files(root, {"captions.csv": "file,caption\nc.JPG,which\n", "img.txt": "of img.jpg alone"})
    assert captions(root) == {
        "c.JPG": "which",
        "c.jpg": None,
        "C.jpg": None,
        "img.jpg": "of img.jpg alone",
        "IMG.jpg": None,
    }


def test_a_file_that_the_table_names_exactly_is_no_other_lines(tmp_path):
    root = files(tmp_path, photos("a.jpg") | {"captions.csv": "file,caption\nA.jpg,x\na.jpg,y\n"})
    assert captions(root) == {"A.jpg": "x", "a.jpg": "y"}
    assert {row["id"]: row["size"] for row in index(root)} == {"A.jpg": None, "a.jpg": len(JPEG)}


@pytest.mark.parametrize(
    "text",
    [
        "file;caption\na.jpg;a, b\nb.jpg;b\n",
        "file\tcaption\r\na.jpg\ta, b\r\nb.jpg\tb\r\n",
        'File,Caption\na.jpg,"a, b"\nb.jpg,b\n',
        'file, caption \n a.jpg,"a, b"\nb.jpg ,b\n',
        "id;TEXT;File_Name\n1;a, b;a.jpg\n2;b;B.JPG\n",
    ],
    ids=["semicolon", "tab", "upper case", "spaces", "other order"],
)
@pytest.mark.parametrize("name", ["captions.csv", "Captions.CSV", "METADATA.csv"])
def test_tables_as_spreadsheets_write_them(text, name, tmp_path):
    files(tmp_path, photos("a.jpg", "b.jpg") | {name: text})
    assert captions(tmp_path) == {"a.jpg": "a, b", "b.jpg": "b"}


def test_each_caption_of_a_list_in_json_lines_is_an_input(tmp_path):
    lines = [{"file_name": "a.jpg", "text": ["one", "two"]}, {"file_name": "b.jpg", "text": []}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    files(tmp_path, photos("a.jpg", "b.jpg") | {"metadata.jsonl": text})
    expected = {"a.jpg": "one", "a.jpg//1": "two", "b.jpg": None}
    assert captions(tmp_path) == expected
    assert captions(tmp_path, layout="jsonl") == {
        "metadata.jsonl#000000001": "one",
        "metadata.jsonl#000000001//1": "two",
        "metadata.jsonl#000000002": None,
    }


def test_columns_may_have_any_name(tmp_path):
    root = files(tmp_path, photos("a.jpg", "b.jpg") | {"captions.csv": "photo,TEXT\na.jpg,a\n"})
    files(root, {"b.json": '{"TEXT": "b", "caption": "not this"}'})
    named = captions(root, image_column="photo", caption_column="TEXT")
    assert named == {"a.jpg": "a", "b.jpg": "b"}


@pytest.mark.parametrize(
    ("pointer", "says"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s9--ab.txt\n", "git annex get"),
    ],
)
def test_a_pointer_is_no_caption(pointer, says, tmp_path):
    root = files(tmp_path, photos("a.jpg", "b.jpg") | {"a.txt": pointer, "b.txt": "b"})
    row = index(root)[0]
    assert row["caption"] is None
    assert row["problem"].startswith("unreadable_file: a.txt is a ") and says in row["problem"]

"""Sources: everything is listed, nothing outside is read, nothing odd stops the job."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from corpus import encode, scene

from raypref.core.config import InputError
from raypref.core.rows import INDEX, Row
from raypref.sources.index import SourceConfig, digest, entries, fetch
from raypref.sources.remembered import unchanged
from raypref.sources.store import SourceError, locate

JPEG = encode(scene(), "JPEG")
MAX = 10**6


def index(path: Path, **settings: Any) -> list[Row]:
    """What the source lists."""
    rows = list(entries(SourceConfig(path=str(path), **settings)))
    assert pa.Table.from_pylist(rows, schema=INDEX).to_pylist() == rows
    return rows


def read(row: Row, root: Path) -> bytes:
    """The bytes of an entry."""
    return fetch(row, locate(str(root)), max_bytes=MAX)


def captions(path: Path, **settings: Any) -> dict[str, str | None]:
    """Id to caption of what the source lists."""
    return {row["id"]: row["caption"] for row in index(path, **settings)}


def table(path: Path, text: str | bytes) -> None:
    """Write captions.csv."""
    data = text.encode() if isinstance(text, str) else text
    (path / "captions.csv").write_bytes(data)


def reason(row: Row, root: Path, *, max_bytes: int = MAX) -> str:
    """Why an entry cannot be read."""
    with pytest.raises(SourceError) as caught:
        fetch(row, locate(str(root)), max_bytes=max_bytes)
    return caught.value.reason


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs, one in a folder below."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.PNG", "sub/c.jpeg"):
        (root / name).write_bytes(JPEG)
    (root / "notes.md").write_text("no photograph")
    return root


def test_captions_csv(photos):
    table(photos, 'extra,file,caption\n1,a.jpg,"a, ""b""\nc"\n2,./b.PNG,b\n3,sub//c.jpeg,ü\n')
    assert captions(photos) == {"a.jpg": 'a, "b"\nc', "b.PNG": "b", "sub/c.jpeg": "ü"}
    for row in index(photos):
        assert row == row | {"uri": row["id"], "member": None, "size": len(JPEG)}
        assert read(row, photos) == JPEG


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        ("file,caption\na.jpg,x\n".encode("utf-8-sig"), "x"),
        (b"file,caption\r\na.jpg,x\r\n", "x"),
        (b"file,caption\n\na.jpg,x\n\n", "x"),
        (b"caption,file\nx,a.jpg", "x"),
        (b"file,caption\na.jpg\nb.PNG,x\n", None),
        (b"file,caption\na.jpg,\nb.PNG,x\n", None),
    ],
    ids=["mark", "crlf", "blank lines", "order", "short line", "empty caption"],
)
def test_captions_csv_as_other_programs_write_it(data, caption, photos):
    table(photos, data)
    assert (captions(photos)["a.jpg"] or None) == caption


def test_sidecars(photos):
    (photos / "a.txt").write_text("\ufeffa text\n", encoding="utf-8")
    (photos / "b.json").write_text(json.dumps({"id": 3, "text": " from json "}))
    (photos / "sub" / "c.txt").write_text("below")
    assert captions(photos) == {"a.jpg": "a text", "b.PNG": "from json", "sub/c.jpeg": "below"}


@pytest.mark.parametrize(
    "content",
    [
        b"{broken",
        b'"caption"',
        b"3",
        b'{"caption": 3}',
        b'{"other": "x"}',
        b'["caption"]',
        b'{"caption": "\\ud800"}',
        b"[" * 100_000,
        b'{"caption": "\xff"}',
        b'{"caption": "' + b"x" * 2**20 + b'"}',
    ],
    ids=lambda content: content[:14].decode("latin-1"),
)
def test_a_json_sidecar_that_holds_no_caption_is_none(content, photos):
    (photos / "a.json").write_bytes(content)
    (photos / "b.txt").write_text("b")
    assert captions(photos) == {"a.jpg": None, "b.PNG": "b", "sub/c.jpeg": None}


def test_a_sidecar_outside_the_folder_is_not_read(photos, tmp_path):
    (tmp_path / "secret.txt").write_text("a secret")
    (photos / "a.txt").symlink_to(tmp_path / "secret.txt")
    (photos / "b.txt").write_text("b")
    assert captions(photos)["a.jpg"] is None


def test_each_caption_of_a_photograph_is_an_input(photos):
    (photos / "a.jpg#1").write_bytes(JPEG)
    table(photos, "file,caption\na.jpg,one\nb.PNG,b\na.jpg,two\na.jpg,two\na.jpg#1,other\n")
    rows = index(photos)
    assert len({row["id"] for row in rows}) == len(rows) == 6
    found = sorted((row["uri"], row["caption"] or "") for row in rows)
    assert found == [
        ("a.jpg", "one"),
        ("a.jpg", "two"),
        ("a.jpg", "two"),
        ("a.jpg#1", "other"),
        ("b.PNG", "b"),
        ("sub/c.jpeg", ""),
    ]


def test_a_photograph_without_caption_and_a_caption_without_photograph_are_listed(photos):
    table(photos, "file,caption\na.jpg,a\nlost.jpg,lost\n,of nothing\n,\n")
    found = {row["id"]: row for row in index(photos)}
    assert found.keys() == {".", "a.jpg", "b.PNG", "lost.jpg", "sub/c.jpeg"}
    assert found["b.PNG"]["caption"] is None
    assert found["lost.jpg"]["size"] is None
    assert reason(found["lost.jpg"], photos) == "missing_file"
    assert reason(found["."], photos) == "missing_file"


def test_ids_are_sorted_and_limit_takes_the_first(photos):
    table(photos, "file,caption\nsub/c.jpeg,c\nb.PNG,b\n")
    assert list(captions(photos)) == ["a.jpg", "b.PNG", "sub/c.jpeg"]
    assert list(captions(photos, limit=2)) == ["a.jpg", "b.PNG"]
    assert list(captions(photos, limit=9)) == ["a.jpg", "b.PNG", "sub/c.jpeg"]


def test_nothing_outside_the_folder_is_read(photos, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(JPEG)
    (tmp_path / "photos-too").mkdir()
    (tmp_path / "photos-too" / "x.jpg").write_bytes(JPEG)
    (photos / "link.jpg").symlink_to(secret)
    (photos / "within.jpg").symlink_to(photos / "a.jpg")
    (photos / "folder").symlink_to(tmp_path)
    outside = ["../secret.jpg", str(secret), "link.jpg", "sub/../../secret.jpg"]
    outside += ["folder/secret.jpg", "../photos-too/x.jpg", "../gone.jpg"]
    table(photos, "file,caption\n" + "".join(f"{name},x\n" for name in outside))
    reasons = {}
    for row in index(photos):
        if row["caption"] == "x":
            reasons[row["uri"]] = reason(row, photos)
    assert reasons == {os.path.normpath(name): "outside_root" for name in outside}
    inside = next(row for row in index(photos) if row["uri"] == "within.jpg")
    assert read(inside, photos) == JPEG


def test_names_that_no_file_can_have_are_missing_files(photos):
    (photos / "circle.jpg").symlink_to("circle.jpg")
    names = ["nul\0.jpg", "n" * 300 + ".jpg", "sub", "circle.jpg", "a.jpg/deeper.jpg"]
    table(photos, "file,caption\n" + "".join(f"{name},x\n" for name in names))
    listed = [row for row in index(photos) if row["caption"] == "x"]
    assert [row["uri"] for row in listed] == sorted(names)
    assert {reason(row, photos) for row in listed} == {"missing_file"}


def test_a_file_name_that_is_not_utf8_is_listed(photos):
    (photos / os.fsdecode(b"caf\xe9.jpg")).write_bytes(JPEG)
    (photos / "a.txt").write_text("a")
    assert "caf\\xe9.jpg" in captions(photos)


def test_a_file_of_a_terabyte_is_not_read(photos):
    with (photos / "huge.jpg").open("wb") as file:
        file.truncate(2**40)
    (photos / "huge.txt").write_text("huge")
    row = next(row for row in index(photos) if row["id"] == "huge.jpg")
    assert reason(row, photos) == "too_many_bytes"
    small = next(row for row in index(photos) if row["id"] == "a.jpg")
    assert fetch(small, locate(str(photos)), max_bytes=len(JPEG)) == JPEG
    assert reason(small, photos, max_bytes=len(JPEG) - 1) == "too_many_bytes"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file|caption\na.jpg|x\n", ["file and caption", "file|caption", "caption_column"]),
        ("", ["file and caption"]),
        ('file,caption\na.jpg,x\nb.PNG,"open\nsub/c.jpeg,y\n', ["line 3"]),
        ('file,"caption\na.jpg,x\n', ["line 1"]),
        ("file,caption\na.jpg,a dog, running\n", ["line 2", "double quotes"]),
        (b"file,caption\na.jpg,caf\xe9\n", ["not UTF-8"]),
        ("file,caption\na.jpg,x\n".encode("utf-16"), ["not UTF-8"]),
    ],
    ids=["other mark", "empty", "open quote", "open header", "bare comma", "latin-1", "utf-16"],
)
def test_a_broken_captions_csv_is_named_with_its_line(text, says, photos):
    table(photos, text)
    with pytest.raises(InputError) as caught:
        index(photos)
    for part in ["captions.csv", *says]:
        assert part in str(caught.value)


def test_a_uri_of_this_machine_follows_no_link_out_either(photos, tmp_path):
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (photos / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    source = SourceConfig(path=photos.as_uri())
    rows = {row["id"]: row for row in entries(source)}
    with pytest.raises(SourceError, match="outside"):
        fetch(rows["link.jpg"], source.store(), max_bytes=MAX)
    assert fetch(rows["a.jpg"], source.store(), max_bytes=MAX) == JPEG


def test_a_shard_outside_the_folder_is_a_reject(photos, tmp_path):
    (tmp_path / "x.tar").write_text("a secret")
    (photos / "x.tar").symlink_to(tmp_path / "x.tar")
    (row,) = entries(SourceConfig(path=str(photos), layout="webdataset"))
    assert row["problem"].startswith("unreadable_archive: ") and row["caption"] is None
    assert "x.tar points outside" in row["problem"]


@pytest.mark.parametrize(("name", "layout"), [("captions.csv", "folder"), ("x.parquet", "parquet")])
def test_a_container_outside_the_folder_is_not_read(name, layout, photos, tmp_path):
    (tmp_path / name).write_text("file,caption\na.jpg,a secret\n")
    (photos / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match=rf"photos.*{name} points outside"):
        index(photos, layout=layout)


def test_a_folder_of_two_kinds_is_asked_about(photos):
    table(photos, "file,caption\na.jpg,x\n")
    (photos / "backup.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"looks like folder and webdataset.*source\.layout"):
        index(photos)
    assert index(photos, layout="folder")[0]["caption"] == "x"


@pytest.mark.parametrize("name", ["old.tar", "old.parquet"])
def test_loose_photographs_are_not_forgotten_for_what_lies_beside_them(name, photos):
    (photos / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"looks like folder and .*source\.layout"):
        index(photos)


def test_a_link_that_leads_nowhere_and_formats_that_cannot_be_read_are_listed(photos, caplog):
    (photos / "gone.jpg").symlink_to(photos / "not fetched.jpg")
    (photos / "v.avif").write_bytes(b"")
    (photos / "elsewhere").symlink_to(photos / "sub")
    rows = {row["id"]: row for row in index(photos)}
    assert rows.keys() == {"a.jpg", "b.PNG", "gone.jpg", "sub/c.jpeg", "v.avif"}
    assert reason(rows["gone.jpg"], photos) == "missing_file"
    assert "elsewhere is a link to a folder" in caplog.text


def test_a_folder_that_cannot_be_listed_is_named(photos, monkeypatch):
    def scandir(path: Any, real: Any = os.scandir) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"photos/sub cannot be listed: Permission denied"):
        index(photos)


def test_a_caption_file_that_is_not_utf8_says_so(photos):
    (photos / "a.txt").write_bytes("café".encode("latin-1"))
    row = index(photos)[0]
    assert row["caption"] is None
    assert row["problem"] == "bad_encoding: a.txt is not UTF-8 text (byte 3)"


def test_a_source_is_listed_once_for_many_runs_of_a_table(photos):
    table(photos, "file,caption\na.jpg,x\n")
    source = SourceConfig(path=str(photos))
    with unchanged():
        first = digest(source)
        table(photos, "file,caption\na.jpg,y\n")
        assert digest(SourceConfig(path=str(photos))) == first
        assert digest(SourceConfig(path=str(photos), limit=1)) != first
    assert digest(source) != first


def test_a_place_that_is_none_is_named(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {
        "absent": "no folder or file",
        "empty": "no photographs in",
        "photos": "3 photographs in .* but not one caption",
        "photos/a.jpg": "is a file, but not one of .parquet, .tar, .jsonl",
    }
    for name, says in places.items():
        with pytest.raises(InputError, match=f"source.path: .*{says}") as caught:
            digest(SourceConfig(path=str(tmp_path / name)))
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(InputError, match="tiny:wrld"):
        digest(SourceConfig(path="tiny:wrld"))


def test_the_digest_changes_with_captions_and_files_and_not_with_the_place(photos, tmp_path):
    def seen() -> str:
        return digest(SourceConfig(path=str(photos)))

    table(photos, "file,caption\na.jpg,x\nb.PNG,y\n")
    first = seen()
    table(photos, "file,caption\nb.PNG,y\na.jpg,x\n")
    assert seen() == first, "the order of lines is no change"
    photos = photos.rename(tmp_path / "elsewhere")
    assert seen() == first, "the place is no change"
    table(photos, "file,caption\na.jpg,x\nb.PNG,z\n")
    changed = {first, seen()}
    (photos / "a.jpg").write_bytes(JPEG + b"\0")
    changed.add(seen())
    (photos / "d.jpg").write_bytes(JPEG)
    changed.add(seen())
    (photos / "a.jpg").unlink()
    changed.add(seen())
    assert len(changed) == 5

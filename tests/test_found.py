"""The lines about a listing: none when all is well, else what is missing and what lies there."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_folder import files, photos
from test_shards import JPEG, OTHER, shard
from test_sources import index

from raypref.core.ledger import in_folder
from raypref.curate.config import CurateConfig
from raypref.curate.graph import Curation
from raypref.engine.stream import StreamConfig
from raypref.sources.found import findings
from raypref.sources.store import locate


def lines(root: Path, **settings: object) -> list[str]:
    found = list(findings(index(root, **settings), locate(str(root))))
    assert len(found) <= 5
    return found


def captioned(*stems: str) -> dict[str, bytes | str]:
    return photos(*(f"{stem}.jpg" for stem in stems)) | {f"{stem}.txt": stem for stem in stems}


def test_nothing_is_said_when_all_is_well(tmp_path):
    files(tmp_path, captioned(*(f"{n:02d}" for n in range(20))) | photos("one without.jpg"))
    files(tmp_path, {"README.md": "", ".git/config": "", "._00.jpg": "\0\5", "runs/run.json": ""})
    assert lines(tmp_path) == []


def test_captions_that_are_missing_and_what_lies_there_instead(tmp_path):
    names = [str(n) for n in range(8)]
    files(tmp_path, captioned("a", "b", "c", "d") | photos(*(f"{n}.jpg" for n in names)))
    assert lines(tmp_path) == ["8 of 12 photographs have no caption and are not used"]
    files(tmp_path, {f"{n}.tags": n for n in names} | {"0.json": "{}"})
    assert lines(tmp_path) == [
        "8 of 12 photographs have no caption and are not used; beside them lie 8 .tags files, "
        "1 .json files without a caption"
    ]


def test_a_table_is_named_where_no_file_has_the_photographs_name(tmp_path):
    files(
        tmp_path, captioned("a") | photos("s/b.jpg", "s/c.jpg") | {"s/all.tsv": "", "t/x.tsv": ""}
    )
    said = "2 of 3 photographs have no caption and are not used; beside them lies s/all.tsv"
    assert lines(tmp_path) == [said]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"b.caption.txt": "b", "c.jpeg.txt": "c"}, "1 .caption.txt files, 1 .jpeg.txt files"),
        ({"txt/b.txt": "b", "txt/c.txt": "c"}, "lie in other folders: 2 txt/*.txt"),
        ({"txt/b.txt": "b", "x/c.txt": "c", "x/c.jpg": JPEG}, "in other folders: 1 txt/*.txt"),
        ({"TAGS.TSV": "b"}, "beside them lies TAGS.TSV"),
    ],
    ids=["double suffix", "folder of texts", "an image's text", "upper case"],
)
def test_what_could_be_captions_is_named(content, says, tmp_path):
    files(tmp_path, captioned("a") | photos("b.jpg", "c.jpg") | content)
    (said,) = lines(tmp_path)
    assert said.startswith("2 of ") and "photographs have no caption and are not used; " in said
    assert says in said


@pytest.mark.parametrize("packed", [False, True])
def test_a_caption_of_two_images_is_said(packed, tmp_path):
    """A mask of the photograph's own name looks like a photograph in another format."""
    files(tmp_path, captioned("a", "b") | photos("a.png", "c.jpg", "c.webp", "c.x.png"))
    files(tmp_path, {"c.txt": "c", "captions.csv": "file,caption\nc.jpg,c\nc.jpg,c\nc.webp,d\n"})
    if packed:
        (tmp_path / "packed").mkdir()
        members = [(path.name, path.read_bytes()) for path in sorted(tmp_path.glob("a.*"))]
        shard(tmp_path / "packed" / "0.tar", members)
    root = tmp_path / "packed" if packed else tmp_path
    first = "0.tar#a.jpg and 0.tar#a.png" if packed else "a.jpg and a.png"
    said = [line for line in lines(root) if "two images" in line]
    assert len(said) == 1
    assert said[0].startswith("1 captions belong to two images that differ in their suffix")
    assert first in said[0]


def test_images_of_formats_that_nothing_reads_are_counted(tmp_path):
    files(tmp_path, captioned("a", "b") | {"a.ARW": "", "b.arw": "", "c.jp2": "", "c.txt": "c"})
    assert lines(tmp_path) == [
        "3 image files have formats that are not read: 2 .arw, 1 .jp2; convert them to JPEG or PNG"
    ]


def test_files_left_out_are_counted_by_where_they_lie(tmp_path):
    files(tmp_path, captioned("a", "b") | captioned(".Trash-1000/files/x", ".Trash-1000/files/y"))
    files(tmp_path, photos("@eaDir/a.jpg/T.jpg", ".b.jpg", "runs/mine/export/1.png"))
    files(tmp_path, {"runs/mine/run.json": "", ".x/notes.txt": ""})
    assert lines(tmp_path) == [
        "5 image files are left out: 2 in .Trash-1000, 1 hidden, 1 in @eaDir and 1 others"
    ]


def test_masks_are_no_photographs_without_captions(tmp_path):
    files(tmp_path, captioned("a", "b") | photos("a.mask.png", "b.mask.png", "c.0001.png"))
    files(tmp_path, {"c.0001.txt": "c"})
    assert lines(tmp_path) == [
        "2 images are not photographs and not used: a.mask.png belongs to a.jpg and has no caption "
        "of its own"
    ]


def test_entries_of_containers_are_counted_by_reason(tmp_path):
    shard(tmp_path / "0.tar", [("a.jpg", JPEG), ("a.seg.png", OTHER), ("a.txt", b"a")])
    (tmp_path / "1.tar").write_bytes(b"")
    assert lines(tmp_path) == [
        "1 images are not photographs and not used: a.seg.png belongs to a.jpg and has no caption "
        "of its own",
        "1 of 2 entries cannot be used: 1 unreadable_archive",
    ]


def test_curation_says_it_before_any_pass(tmp_path, monkeypatch, caplog):
    class FirstPass(Exception):  # noqa: N818
        pass

    def no_pass(*arguments: object, **options: object) -> None:
        raise FirstPass

    monkeypatch.setattr("raypref.curate.photographs.stream", no_pass)
    root = files(tmp_path / "photos", captioned("a") | photos("b.jpg", ".trash/c.jpg"))
    config = CurateConfig(source={"path": str(root)})
    with pytest.raises(FirstPass):
        Curation(config, place=in_folder(str(tmp_path / "run"))).run(StreamConfig())
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "source: 1 of 2 photographs have no caption and are not used",
        "source: 1 image files are left out: 1 in .trash",
    ]

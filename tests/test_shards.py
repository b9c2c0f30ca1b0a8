"""WebDataset shards: members are read where they lie, and odd ones end with their reason."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpus import encode, scene
from pyarrow import fs as pafs

from raypref.core.rows import Row
from raypref.curate.transforms import MeasurePhotograph
from raypref.images.decode import ImageConfig
from raypref.sources.captions import ANY
from raypref.sources.index import SourceConfig, digest, entries, fetch
from raypref.sources.layouts.webdataset import photographs
from raypref.sources.store import RemoteStore, SourceError, locate

JPEG = encode(scene(), "JPEG")
OTHER = encode(scene(1), "PNG")


def shard(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], **how: object) -> None:
    """Write a tar of members."""
    with tarfile.open(path, "w", **how) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """A member that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def index(path: Path) -> list[Row]:
    return list(entries(SourceConfig(path=str(path))))


def ended(path: Path) -> Iterator[tuple[str, str]]:
    """Id and reason of every entry after `MeasurePhotograph`; "ok" for the sound ones."""
    source = SourceConfig(path=str(path))
    measure = MeasurePhotograph(source, ImageConfig(size=32))
    measure.setup()
    rows = index(path)
    measure(rows)
    for row in rows:
        yield row["id"], row.get("reject_reason") or "ok"


def test_samples_of_several_shards(tmp_path: Path) -> None:
    text = json.dumps({"caption": " from json "}).encode()
    shard(
        tmp_path / "0.tar",
        [("a/01.jpg", JPEG), ("a/01.txt", b"one\n"), ("a/02.json", text), ("a/02.v2.png", OTHER)],
    )
    shard(tmp_path / "1.tar", [("01.txt", b"three"), ("01.jpg", OTHER), ("01.cls", b"7")])
    rows = index(tmp_path)
    assert [(row["id"], row["caption"]) for row in rows] == [
        ("0.tar#a/01.jpg", "one"),
        ("0.tar#a/02.v2.png", "from json"),
        ("1.tar#01.jpg", "three"),
    ]
    store = locate(str(tmp_path))
    assert [fetch(row, store, max_bytes=10**6) for row in rows] == [JPEG, OTHER, OTHER]
    with pytest.raises(SourceError, match="more than"):
        fetch(rows[0], store, max_bytes=len(JPEG) - 1)
    assert index(tmp_path / "1.tar") == [rows[2]]


def test_dots_in_names_and_what_macos_adds(tmp_path: Path) -> None:
    """Every image has the caption of its own name; AppleDouble members are none and split none."""
    names = ["IMG.0001", "IMG.0002", "IMG.0003"]
    members = [(f"{n}{end}", data) for n in names for end, data in ((".jpg", JPEG), (".txt", b""))]
    members = [(n, n[:8].encode() if n.endswith("t") else data) for n, data in members]
    members += [("IMG.0004.jpg", JPEG), ("b.seg.png", OTHER), ("b.txt", b"of the key")]
    shard(tmp_path / "0.tar", [m for n, d in members for m in ((f"./._{n}", b"\0\5"), (n, d))])
    assert [(row["id"], row["caption"]) for row in index(tmp_path)] == [
        *((f"0.tar#{name}.jpg", name) for name in names),
        ("0.tar#IMG.0004.jpg", None),
        ("0.tar#b.seg.png", "of the key"),
    ]


def test_nothing_is_extracted_or_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (tmp_path / "set").mkdir()
    sparse = tarfile.TarInfo("sparse.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    shard(
        tmp_path / "set" / "0.tar",
        [
            ("../escape.jpg", JPEG),
            ("../escape.txt", b"above"),
            ("/absolute.jpg", JPEG),
            ("/absolute.txt", b"absolute"),
            (special("soft.jpg", tarfile.SYMTYPE, "../secret.jpg"), b""),
            (special("hard.jpg", tarfile.LNKTYPE, "../secret.jpg"), b""),
            (special("device.jpg", tarfile.CHRTYPE), b""),
            (special("pipe.jpg", tarfile.FIFOTYPE), b""),
            ("code.pkl", b"cos\nsystem\n(S'touch pwned'\ntR."),
            (special("folder.jpg", tarfile.DIRTYPE), b""),
            ("alone.jpg", JPEG),
            ("twice.jpg", JPEG),
            ("twice.txt", b"first"),
            ("k" * 180 + ".jpg", JPEG),
            ("k" * 180 + ".txt", b"a long key"),
            ("twice.jpg", OTHER),
            ("twice.txt", b"second"),
            ("latin.jpg", JPEG),
            ("latin.txt", b"caf\xe9"),
        ],
    )
    before = sorted(tmp_path.rglob("*"))
    # Names are labels here, never paths: what a member is called can do no harm.
    assert dict(ended(tmp_path / "set")) == {
        "0.tar#../escape.jpg": "ok",
        "0.tar#/absolute.jpg": "ok",
        "0.tar#soft.jpg": "not_a_file",
        "0.tar#hard.jpg": "not_a_file",
        "0.tar#device.jpg": "not_a_file",
        "0.tar#pipe.jpg": "not_a_file",
        "0.tar#alone.jpg": "no_caption",
        "0.tar#twice.jpg": "ok",
        "0.tar#" + "k" * 180 + ".jpg": "ok",
        "0.tar#twice.jpg//1": "ok",
        "0.tar#latin.jpg": "bad_encoding",
    }
    assert sorted(tmp_path.rglob("*")) == before
    keys = {row["id"]: row["caption"] for row in index(tmp_path / "set")}
    assert keys["0.tar#twice.jpg"] == "first" and keys["0.tar#twice.jpg//1"] == "second"


def test_a_cut_shard_keeps_what_is_sound(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [(f"{i}{end}", JPEG) for i in range(9) for end in (".jpg", ".txt")])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.tar").write_bytes(b"<html>not a tar</html>" * 100)
    shard(tmp_path / "c.tar", [("x.jpg", JPEG), ("x.txt", b"x")])
    outcome = dict(ended(tmp_path))
    assert outcome["c.tar#x.jpg"] == "ok"
    assert outcome["b.tar#//damaged"] == "unreadable_archive"
    assert outcome["a.tar#//damaged"] == "unreadable_archive"
    assert 3 <= sum(name.startswith("a.tar#") for name in outcome) <= 6


def test_a_shard_that_cannot_be_opened_is_one_reject(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [("x.jpg", JPEG), ("x.txt", b"one")])
    (tmp_path / os.fsdecode(b"b\xff.tar")).write_bytes((tmp_path / "a.tar").read_bytes())
    assert dict(ended(tmp_path)) == {
        "a.tar#x.jpg": "ok",
        "b\\xff.tar#//damaged": "unreadable_archive",
    }


def test_a_network_error_is_no_damage(tmp_path: Path) -> None:
    """The job stops and is started again; a shard cut short by it would stay so."""
    shard(tmp_path / "a.tar", [(f"{n}.jpg", bytes(2**16)) for n in range(64)])

    class Store:
        def get_file_info(self, path: object) -> object:
            name = tmp_path / "a.tar"
            found = pafs.FileInfo(str(name), pafs.FileType.File, size=name.stat().st_size)
            return [found] if isinstance(path, pafs.FileSelector) else found

        def open_input_file(self, path: str) -> io.RawIOBase:
            return Failing(path)

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell() > 2**20:
                raise OSError("AWS Error NETWORK_CONNECTION during GetObject")
            return super().readinto(buffer)

    store = RemoteStore("s3://bucket", Store(), str(tmp_path), None)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        list(photographs(store, ANY))


def test_the_digest_takes_size_and_both_ends(tmp_path: Path) -> None:
    def seen() -> str:
        return digest(SourceConfig(path=str(tmp_path)))

    members = [(f"{n}.jpg", JPEG) for n in range(50)]
    shard(tmp_path / "a.tar", members)
    first = seen()
    shard(tmp_path / "a.tar", members)
    assert seen() == first, "a new copy is no change"
    shard(tmp_path / "a.tar", [("other.jpg", JPEG), *members[1:]])
    other = seen()
    shard(tmp_path / "a.tar", members[:-1])
    assert len({first, other, seen()}) == 3


def test_a_compressed_shard_is_refused_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(special("x.jpg", tarfile.REGTYPE), io.BytesIO())
    assert dict(ended(tmp_path)) == {"a.tar#//damaged": "unreadable_archive"}


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member's header that claims any size, with a sound checksum."""
    info = tarfile.TarInfo(name)
    info.type = kind
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    data[124:136] = (
        b"\x80" + size.to_bytes(11, "big")
        if size >= 0
        else b"\xff" + ((1 << 88) + size).to_bytes(11, "big")
    )
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("size", [-512, -1, 2**70, 2**41, 10**9], ids=str)
@pytest.mark.parametrize("place", ["first", "later"])
def test_a_size_that_no_member_has_does_no_harm(size: int, place: str, tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [("x.jpg", JPEG), ("x.txt", b"x")] if place == "later" else [])
    sound = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    sound += b"\0" * (-len(sound) % 512)
    (tmp_path / "a.tar").write_bytes(sound + header("y.jpg", size) + JPEG + b"\0" * 4096)
    outcome = dict(ended(tmp_path))
    assert outcome.pop("a.tar#//damaged") == "unreadable_archive"
    if place == "later":
        assert outcome.pop("a.tar#x.jpg") == "ok"
    # One that only reaches beyond the end is listed, and cannot be read.
    assert outcome.keys() <= {"a.tar#y.jpg"}
    assert "ok" not in outcome.values()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "kind",
    [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE],
    ids=["long", "pax", "global"],
)
def test_a_name_of_a_gigabyte_is_not_read(kind: bytes, tmp_path: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header("x", 10**9, kind))
        file.truncate(2 * 10**9)
    [damaged] = index(tmp_path)
    assert damaged["id"] == "a.tar#//damaged"
    assert damaged["problem"].startswith("unreadable_archive: ")
    assert damaged["problem"].endswith("a header of 1000000000 bytes")


def test_an_extended_header_cannot_move_a_member_out_of_its_shard(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.size = len(JPEG)
    info.pax_headers = {"size": str(-1024)}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(JPEG))
    assert "ok" not in dict(ended(tmp_path)).values()

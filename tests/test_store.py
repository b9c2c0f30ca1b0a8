"""What of a folder is data, and which links and paths lead out of it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs as pafs
from test_folder import files, photos
from test_parquet import parquet
from test_shards import shard
from test_sources import JPEG, MAX, captions, index

from raypref.core.config import InputError
from raypref.sources.index import SourceConfig, digest, entries, fetch
from raypref.sources.leftout import left_out_by, results_among
from raypref.sources.reading import lookup
from raypref.sources.store import RemoteStore, SourceError, locate

SYSTEM = [
    *(".Trash-1000/files/x.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "sub/.hidden/x.jpg"),
    *("@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "lost+found/x.jpg", "__MACOSX/._a.jpg"),
    *(
        "$RECYCLE.BIN/x.jpg",
        "System Volume Information/x.jpg",
        "._a.jpg",
        "sub/.b.jpg",
        "#recycle/x.jpg",
    ),
]


def test_hidden_and_system_files_are_no_data(tmp_path):
    root = files(tmp_path, photos("a.jpg", "sub/b.jpg", "x.y/c.jpg"))
    files(root, {f"{name[:-4]}.txt": name for name in ("a.jpg", "sub/b.jpg", "x.y/c.jpg")})
    before = index(root)
    files(
        root,
        dict.fromkeys(SYSTEM, JPEG) | {"._a.txt": "\0\5\x16", "Thumbs.db": "", "desktop.ini": ""},
    )
    files(root, {".Trash-1000/files/x.txt": "deleted", ".Trash-1000/x.tar": "", ".x/y.parquet": ""})
    assert index(root) == before
    assert [row["id"] for row in before] == ["a.jpg", "sub/b.jpg", "x.y/c.jpg"]
    assert {name: by for by, name in locate(str(root)).left_out() if name in SYSTEM} == {
        name: left_out_by(name) for name in SYSTEM
    }


def test_a_source_whose_own_name_is_hidden_is_one(tmp_path):
    root = files(tmp_path / ".data" / "lost+found", photos("a.jpg") | {"run.json": "{}"})
    assert list(captions(root)) == ["a.jpg"]


def test_a_table_may_name_what_is_hidden(tmp_path):
    root = files(
        tmp_path, photos(".pool/a.jpg") | {"captions.csv": "file,caption\n.pool/a.jpg,x\n"}
    )
    assert captions(root) == {".pool/a.jpg": "x"}
    assert index(root)[0]["size"] == len(JPEG)


def test_own_results_below_the_source_change_nothing(tmp_path):
    root = files(tmp_path, photos("a.jpg") | {"a.txt": "a"})
    before = digest(SourceConfig(path=str(root)))
    files(
        root,
        photos("runs/mine/export/folders/0_chosen.png", "own/pairs/x.png", "mlartifacts/1/x.png")
        | {"runs/mlflow.db": "", "runs/mine/run.json": "{}", "own/pairs/started.json": "{}"}
        | {"mlflow.db": "", "runs/mine/pairs/part-0.parquet": ""}
        | photos("new/pairs/x.png")
        | {"new/pairs/.started.json": "{}"},
    )
    assert digest(SourceConfig(path=str(root))) == before
    assert [row["id"] for row in index(root / "runs" / "mine" / "export")] == [
        "folders/0_chosen.png"
    ]


def test_results_are_told_by_the_names_of_all_files():
    names = ["a.jpg", "runs/x/run.json", "cache/started.json", "run.json", "deep/mlflow.db"]
    names.append("new/.started.json")
    assert results_among(names) == {"runs/x", "cache", "deep", "new"}
    assert left_out_by("runs/x/export/1.png", results_among(names)) == "runs/x"
    assert left_out_by("../escape.jpg") is None and left_out_by("./a.jpg") is None


@pytest.mark.parametrize("name", ["lost+found", ".private", "sub"])
def test_only_a_system_folder_that_cannot_be_listed_is_left_out(name, tmp_path, monkeypatch):
    root = files(tmp_path, photos("a.jpg", f"{name}/b.jpg") | {"a.txt": "a"})
    real = os.scandir

    def scandir(path):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    if name != "sub":
        assert captions(root) == {"a.jpg": "a"}
        return
    with pytest.raises(InputError, match=r"sub cannot be listed: .*begin its name with a dot"):
        index(root)


def test_a_pipe_is_not_listed(tmp_path):
    root = files(tmp_path, photos("a.jpg"))
    os.mkfifo(root / "b.jpg")
    assert list(captions(root)) == ["a.jpg"]


def linked(root: Path, name: str, blob: Path) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).symlink_to(os.path.relpath(blob, (root / name).parent))


@pytest.fixture(params=["hub", "annex", "dvc"])
def stored(request, tmp_path) -> tuple[Path, Path]:
    """A source whose files are links into a store, and the store."""
    top = tmp_path / "datasets--someone--street"
    root, store = {
        "hub": (top / "snapshots" / "0123abcd", top / "blobs"),
        "annex": (top / "photos", top / ".git" / "annex" / "objects" / "a1"),
        "dvc": (top / "photos", top / ".dvc" / "cache" / "files" / "md5"),
    }[request.param]
    root.mkdir(parents=True)
    store.mkdir(parents=True)
    return root, store


def test_links_into_the_store_of_a_tool_are_followed(stored):
    root, store = stored
    files(store, {"b1": JPEG, "b2": "file,caption\na.jpg,a\nsub/b.jpg,b\n"})
    linked(root, "a.jpg", store / "b1")
    linked(root, "sub/b.jpg", store / "b1")
    linked(root, "captions.csv", store / "b2")
    assert captions(root) == {"a.jpg": "a", "sub/b.jpg": "b"}
    store = locate(str(root))
    assert [fetch(row, store, max_bytes=MAX) for row in index(root)] == [JPEG, JPEG]


def test_shards_and_parquet_files_may_be_such_links(stored):
    root, store = stored
    shard(store / "b1", [("x.jpg", JPEG), ("x.txt", b"x")])
    linked(root, "tars/0.tar", store / "b1")
    parquet(store / "b2", [JPEG], ["p"], kind=pa.binary(), column="image")
    linked(root, "tables/0.parquet", store / "b2")
    assert captions(root / "tars") == {"0.tar#x.jpg": "x"}
    assert captions(root / "tables") == {"0.parquet#000000000": "p"}
    assert captions(root / "tars" / "0.tar") == {"0.tar#x.jpg": "x"}


def test_a_table_reaches_the_store_by_the_links_of_the_source_alone(stored, tmp_path):
    """Neither by its own path, nor through a link to a folder, nor to another file outside."""
    root, store = stored
    files(store, {"b1": JPEG})
    files(tmp_path, {"secret.jpg": JPEG})
    linked(root, "a.jpg", store / "b1")
    linked(root, "folder", store)
    linked(root, "secret.jpg", tmp_path / "secret.jpg")
    there = os.path.relpath(store / "b1", root)
    names = [there, str(store / "b1"), "folder/b1", "secret.jpg"]
    files(root, {"captions.csv": "file,caption\na.jpg,a\n" + "".join(f"{n},x\n" for n in names)})
    store, ends = locate(str(root)), {}
    for row in index(root):
        try:
            ends[row["uri"]] = len(fetch(row, store, max_bytes=MAX))
        except SourceError as error:
            ends[row["uri"]] = error.reason
    assert ends == dict.fromkeys(names, "outside_root") | {"a.jpg": len(JPEG)}


def test_roots_allow_absolute_paths_and_links(tmp_path):
    pool = files(tmp_path / "pool", photos("a.jpg", "deep/b.jpg"))
    files(tmp_path, {"secret.jpg": JPEG})
    root = tmp_path / "lists"
    lines = [pool / "a.jpg", tmp_path / "secret.jpg", "../pool/deep/b.jpg", "link.jpg"]
    text = "".join(f'{{"image_path": "{line}", "caption": "x"}}\n' for line in lines)
    files(root, {"train.jsonl": text})
    linked(root, "link.jpg", pool / "a.jpg")

    def ends(**settings: object) -> list[str]:
        source = SourceConfig(path=str(root), layout="jsonl", **settings)
        found = []
        for row in entries(source):
            try:
                found.append(fetch(row, source.store(), max_bytes=MAX) == JPEG)
            except SourceError as error:
                found.append(error.reason)
        return found

    assert ends() == ["outside_root"] * 4
    assert ends(roots=[str(pool)]) == [True, "outside_root", True, True]
    with pytest.raises(InputError, match=r"source\.roots: there is no folder"):
        ends(roots=[str(tmp_path / "none")])


def test_links_to_folders_in_the_roots_are_followed_once(tmp_path):
    pool = files(tmp_path / "pool", photos("x/a.jpg", "y/b.jpg"))
    (pool / "x" / "round").symlink_to(pool / "y")
    (pool / "y" / "round").symlink_to(pool / "x")
    root = files(tmp_path / "source", photos("own.jpg"))
    (root / "x").symlink_to(pool / "x")
    assert list(captions(root)) == ["own.jpg"]
    assert list(captions(root, roots=[str(pool)])) == ["own.jpg", "x/a.jpg", "x/round/b.jpg"]


def test_the_settings_leave_the_fingerprint_alone(tmp_path):
    from raypref.core.config import results_of

    files(tmp_path, photos("a.jpg"))
    plain = SourceConfig(path=str(tmp_path))
    other = SourceConfig(
        path=str(tmp_path), roots=[str(tmp_path)], image_column="i", caption_column="c"
    )
    assert results_of({"source": plain}) == results_of({"source": other})
    assert results_of({"source": plain}).keys() == {
        f"source.{n}" for n in ("layout", "limit", "max_caption")
    }


def test_an_object_store_has_the_same_rules(tmp_path):
    files(tmp_path, photos("a.jpg", "Sub/cafe\u0301.JPG", ".x/b.jpg", "@eaDir/b.jpg", "runs/1.png"))
    files(tmp_path, {"runs/run.json": "{}"})
    store = RemoteStore("s3://bucket", pafs.LocalFileSystem(), str(tmp_path), None)
    assert [file.name for file in store.files()] == ["Sub/cafe\u0301.JPG", "a.jpg"]
    assert dict(store.left_out()) == {
        ".x": ".x/b.jpg",
        "@eaDir": "@eaDir/b.jpg",
        "runs": "runs/run.json",
    }
    look = lookup(store)
    assert look("sub\\café.jpg") == ("Sub/cafe\u0301.JPG", len(JPEG))
    assert look("../a.jpg") == ("../a.jpg", None)

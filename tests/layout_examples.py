"""A small dataset of each registered layout, for the tests that every layout must pass."""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from corpus import encode, scene

# The first photograph's caption is "one", the second's "two"; people prefer both to the other.
FIRST, SECOND, OTHER = (encode(scene(number), "PNG") for number in range(3))


class Example(NamedTuple):
    """How the dataset is written, and what must come out.

    Attributes:
        write: is given a folder, the bytes of the second photograph, and, where the layout names
            files, the name of its file, relative to the folder.
        ids: of the photographs: they drive resume and must never change.
        names_files: whether the layout names files of images; else it holds their bytes.
        prompts: the file with the prompts.
        pairs: writes the dataset of labelled pairs, where that is another one.
        images: the same for labelled images, whose scores are 1 and 0.
    """

    write: Callable[[Path, bytes, str], None]
    ids: tuple[str, ...] = ()
    names_files: bool = True
    prompts: str = ""
    pairs: Callable[[Path, bytes, str], None] | None = None
    images: Callable[[Path, bytes, str], None] | None = None


def images(root: Path, second: bytes, folder: str = "") -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, data in (("a.png", FIRST), ("b.png", second), ("x.png", OTHER)):
        (root / folder / name).write_bytes(data)


def dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def folder(root: Path, second: bytes, name: str) -> None:
    images(root, second)
    (root / "x.png").unlink()
    (root / "captions.csv").write_text(f"file,caption\na.png,one\n{name},two\n")


def parquet(root: Path, second: bytes, name: str) -> None:
    table = pa.table({"image": [FIRST, second], "prompt": ["one", "two"]})
    pq.write_table(table, root / "train.parquet")


def webdataset(root: Path, second: bytes, name: str) -> None:
    texts = (("a.png", FIRST), ("a.txt", b"one")), (("b.png", second), ("b.txt", b"two"))
    pack(root / "0.tar", *texts[0], *texts[1])


def brushdata(root: Path, second: bytes, name: str) -> None:
    masks = json.dumps({"mask": ["1,2"]}).encode()
    one = [("a.caption", b"one"), ("a.image", FIRST), ("a.segmentation", masks)]
    pack(root / "0.tar", *one, ("b.caption", b"two"), ("b.image", second))


def pack(path: Path, *members: tuple[str, bytes]) -> None:
    """A tar file of some members."""
    with tarfile.open(path, "w") as tar:
        for member, data in members:
            header = tarfile.TarInfo(member)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))


def webdataset_pairs(root: Path, second: bytes, name: str) -> None:
    said = json.dumps({"prompt": "two", "label": 0}).encode()
    one = ("a.chosen.png", FIRST), ("a.rejected.png", OTHER), ("a.txt", b"one")
    pack(root / "0.tar", *one, ("b.0.png", OTHER), ("b.1.png", second), ("b.json", said))


def webdataset_images(root: Path, second: bytes, name: str) -> None:
    one, two = (
        json.dumps({"prompt": text, "score": score}).encode()
        for text, score in (("one", 1), ("two", 0))
    )
    pack(root / "0.tar", ("a.png", FIRST), ("a.json", one), ("b.png", second), ("b.json", two))


def labelled(root: Path, second: bytes, name: str) -> None:
    images(root, second)
    lines = ("prompt,image_0,image_1,label", "one,a.png,x.png,1", f"two,x.png,{name},0")
    (root / "labels.csv").write_text("".join(f"{line}\n" for line in lines))


def labelled_images(root: Path, second: bytes, name: str) -> None:
    images(root, second)
    (root / "labels.csv").write_text(f"prompt,image,label\none,a.png,good\ntwo,{name},bad\n")


def rated_rows(root: Path, second: bytes, name: str) -> None:
    columns = {"prompt_id": ["0", "1"], "prompt": ["one", "two"], "rank": [1, 1]}
    held = {"image": [FIRST, second], "overall_rating": [1, 0]}
    pq.write_table(pa.table(columns | held), root / "train.parquet")


def jsonl(root: Path, second: bytes, name: str) -> None:
    images(root, second)
    lines = ({"file": file, "prompt": text} for file, text in (("a.png", "one"), (name, "two")))
    (root / "index.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def hpdv3(root: Path, second: bytes, name: str) -> None:
    images(root, second)
    models = {"model1": "real_images", "model2": "flux", "path2": "x.png", "confidence": 1.0}
    chosen = (("one", "a.png"), ("two", name))
    dump(root / "all.json", [{"prompt": text, "path1": path} | models for text, path in chosen])


def hpdv2(root: Path, second: bytes, name: str) -> None:
    images(root, second)
    by_rank = {"prompt": "one", "image_path": ["a.png", "x.png"], "rank": [1, 2]}
    choice = {"prompt": "two", "file_path": ["x.png", name], "human_preference": [0, 1]}
    dump(root / "test.json", [by_rank, choice])


def pickapic(root: Path, second: bytes, name: str) -> None:
    columns = {
        "caption": ["one", "two"],
        "jpg_0": [FIRST, OTHER],
        "jpg_1": [OTHER, second],
        "label_0": [1.0, 0.0],
        "image_0_uid": ["a", "x"],
        "image_1_uid": ["x", "b"],
    }
    pq.write_table(pa.table(columns), root / "train.parquet")


def civitai(root: Path, second: bytes, name: str) -> None:
    images(root, second, "images")
    # Names are relative to that folder.
    named = name if posixpath.dirname(name) == "" else posixpath.join("..", name)
    dump(root / "prompts.json", {"a.png": {"prompt": "one"}, named: {"prompt": "two"}})


def imagereward(root: Path, second: bytes, name: str) -> None:
    images(root, second)
    chosen = (("one", "a.png"), ("two", name))
    dump(
        root / "train.json",
        [{"prompt": t, "generations": [path, "x.png"], "ranking": [1, 2]} for t, path in chosen],
    )


def text(root: Path, second: bytes, name: str) -> None:
    (root / "prompts.txt").write_text("one\ntwo\n")


def table(root: Path, second: bytes, name: str) -> None:
    (root / "prompts.csv").write_text("id,Prompt\n0,one\n1,two\n")


def json_list(root: Path, second: bytes, name: str) -> None:
    dump(root / "prompts.json", ["one", {"prompt": "two"}])


EXAMPLES = {
    "folder": Example(folder, ("a.png", "b.png")),
    "parquet": Example(
        parquet,
        ("train.parquet#000000000", "train.parquet#000000001"),
        names_files=False,
        prompts="train.parquet",
    ),
    "webdataset": Example(
        webdataset,
        ("0.tar#a.png", "0.tar#b.png"),
        names_files=False,
        pairs=webdataset_pairs,
        images=webdataset_images,
    ),
    "brushdata": Example(brushdata, ("0.tar#a", "0.tar#b"), names_files=False),
    "masked": Example(folder, ("a.png", "b.png")),
    "jsonl": Example(
        jsonl, ("index.jsonl#000000001", "index.jsonl#000000002"), prompts="index.jsonl"
    ),
    "hpdv3": Example(hpdv3, ("000000000#a", "000000001#b")),
    "pickapic": Example(
        pickapic, ("train.parquet#000000000", "train.parquet#000000001"), names_files=False
    ),
    "civitai": Example(civitai, ("a.png", "b.png")),
    "imagereward": Example(imagereward, ("a.png", "b.png"), images=rated_rows),
    "labelled": Example(labelled, images=labelled_images),
    "hpdv2": Example(hpdv2),
    "text": Example(text, prompts="prompts.txt"),
    "table": Example(table, prompts="prompts.csv"),
    "json": Example(json_list, prompts="prompts.json"),
}

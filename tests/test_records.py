"""Images listed by JSON records: an index file, and the layouts of public datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import encode, scene

from raypref.core.config import InputError, results_of
from raypref.curate.transforms import MeasurePhotograph
from raypref.images.decode import ImageConfig
from raypref.sources.index import SourceConfig, digest, entries, fetch
from raypref.sources.store import locate

JPEG = encode(scene(), "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photographs in a folder, and one beside it."""
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    root = tmp_path / "set"
    for name in ("a.jpg", "images/b.jpg", "images/c.png", "images/sub/b.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)
    return root


def captions(path: Path, layout: str) -> list[tuple[str, str | None]]:
    """What a layout lists: file and caption."""
    rows = list(entries(SourceConfig(path=str(path), layout=layout)))
    assert len({row["id"] for row in rows}) == len(rows)
    return [(row["uri"], row["caption"]) for row in rows]


def outcomes(path: Path, layout: str = "auto") -> Iterator[str]:
    source = SourceConfig(path=str(path), layout=layout)
    rows = list(entries(source))
    measure = MeasurePhotograph(source, ImageConfig(size=32))
    measure.setup()
    measure(rows)
    for row in rows:
        yield row.get("reject_reason") or "ok"


def dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def test_a_jsonl_index(root: Path) -> None:
    lines = [
        ('{"file": "a.jpg", "caption": "one"}', "ok"),
        ('{"path": "images/../a.jpg", "text": "again"}', "ok"),
        ('{"image_path": "images/b.jpg", "prompt": "two", "extra": 3}', "ok"),
        ('{"file": "../secret.jpg", "caption": "x"}', "outside_root"),
        ('{"file": "/etc/passwd", "caption": "x"}', "outside_root"),
        ('{"file": "gone.jpg", "caption": "x"}', "missing_file"),
        ('{"file": "images", "caption": "x"}', "missing_file"),
        ('{"file": "a.jpg"}', "no_caption"),
        ('{"file": "a.jpg", "caption": null}', "no_caption"),
        ('{"file": "a.jpg", "caption": [3, null]}', "no_caption"),
        ('{"file": "a.jpg", "caption": "\\ud800"}', "no_caption"),
        ('{"file": "a.jpg", "caption": "x\\u0000"}', "bad_caption"),
        ('{"file": "a.jpg", "caption": "' + "x" * 3000 + '"}', "caption_too_long"),
        ('{"file": "\\ud800.jpg", "caption": "x"}', "missing_file"),
        ('{"file": 3, "caption": "x"}', "bad_record"),
        ('{"caption": "x"}', "bad_record"),
        ("{broken", "bad_record"),
        ("[1, 2]", "bad_record"),
        ('"text"', "bad_record"),
        ("3", "bad_record"),
        ("true", "bad_record"),
        ("1e999", "bad_record"),
        ('"my file"', "bad_record"),
        ('["path"]', "bad_record"),
        ("[" * 100_000, "bad_record"),
    ]
    text = "\n".join(line for line, _ in lines).encode() + b"\n\xff\xfe\n\n"
    (root / "index.jsonl").write_bytes(text)
    expected = [reason for _, reason in lines] + ["bad_encoding"]
    assert list(outcomes(root / "index.jsonl")) == expected
    assert list(outcomes(root, "jsonl")) == expected
    first = next(entries(SourceConfig(path=str(root / "index.jsonl"))))
    assert fetch(first, locate(str(root)), max_bytes=10**6) == JPEG


def test_a_jsonl_index_as_other_programs_write_it(root: Path) -> None:
    """With a byte order mark, with CRLF; what is not UTF-8 is no caption with holes in it."""
    text = '{"file": "b.jpg", "caption": "ü"}\r\n{"file": "c.png", "caption": "x"}\r\n'
    (root / "images" / "index.jsonl").write_text(text, "utf-8-sig", newline="")
    # Paths are relative to the record file, wherever the source begins.
    assert captions(root, "jsonl") == [("images/b.jpg", "ü"), ("images/c.png", "x")]
    assert list(outcomes(root, "jsonl")) == ["ok", "ok"]
    (root / "images" / "index.jsonl").write_bytes(text.encode("latin-1"))
    assert list(outcomes(root, "jsonl")) == ["bad_encoding", "ok"]


def test_a_line_of_any_length_is_read_in_pieces(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raypref.sources.captions.LINE_BYTES", 64)
    (root / "index.jsonl").write_text(
        '{"file": "a.jpg", "caption": "' + "x" * 80 + '"}\n{"file": "a.jpg", "caption": "one"}\n'
    )
    assert list(outcomes(root, "jsonl")) == ["bad_record", "bad_record", "ok"]


def test_hpdv3_takes_each_real_photograph_once(root: Path) -> None:
    def record(path1: Any, path2: Any, model1: str, model2: str, prompt: Any) -> dict[str, Any]:
        models = {"model1": model1, "model2": model2}
        return {"prompt": prompt, "path1": path1, "path2": path2, **models, "confidence": 0.9}

    dump(
        root / "all.json",
        [
            record("a.jpg", "x.png", "real_images", "sdxl", "one"),
            record("y.png", "images/b.jpg", "flux", "real_images", "two"),
            record("a.jpg", "z.png", "real_images", "flux", "seen before"),
            record("y.png", "x.png", "flux", "sdxl", "no photograph"),
            record("images/sub/b.jpg", "x.png", "real_images", "sdxl", "the stem is the identity"),
            record(None, "x.png", "real_images", "sdxl", "no path"),
            record("../secret.jpg", "x.png", "real_images", "sdxl", "outside"),
            "no record",
        ],
    )
    assert captions(root, "hpdv3") == [
        ("a.jpg", "one"),
        ("images/b.jpg", "two"),
        ("all.json", None),
        ("../secret.jpg", "outside"),
        ("all.json", None),
    ]
    expected = ["ok", "ok", "bad_record", "outside_root", "bad_record"]
    assert list(outcomes(root, "hpdv3")) == expected


def test_civitai_maps_names_to_prompts(root: Path) -> None:
    records = {"b.jpg": {"prompt": "a castle"}, "c.png": {}, "../../secret.jpg": {"prompt": "x"}}
    records["./b.jpg"] = {"prompt": "a castle"}  # another name of the same file
    dump(root / "prompts.json", records)
    assert captions(root, "civitai") == [
        ("../secret.jpg", "x"),
        ("images/b.jpg", "a castle"),
        ("images/b.jpg", "a castle"),
        ("images/c.png", None),
    ]
    assert list(outcomes(root, "civitai")) == ["outside_root", "ok", "ok", "no_caption"]


def test_a_json_file_of_too_many_bytes_is_not_parsed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dump(root / "prompts.json", {"a": "one"})
    monkeypatch.setattr("raypref.sources.records.JSON_BYTES", 10)
    with pytest.raises(InputError, match="12 bytes, more than 10"):
        captions(root, "civitai")


def test_imagereward_takes_the_generations_of_the_best_rank(root: Path) -> None:
    record = {
        "id": "005658-0040",
        "prompt": "a painting",
        "generations": ["images/b.jpg", "images/c.png", "a.jpg"],
        "ranking": [2, 1, 1],
    }
    odd: list[Any] = ["no record", {"generations": None, "ranking": [1]}, {}]
    odd += [{"generations": ["a.jpg"], "ranking": [1, "x"]}, {"generations": [3], "ranking": [1]}]
    dump(root / "train.json", [record, *odd])
    expected = [("images/c.png", "a painting"), ("a.jpg", "a painting")]
    assert captions(root, "imagereward")[:2] == expected
    assert list(outcomes(root, "imagereward")) == ["ok", "ok", *["bad_record"] * len(odd)]


def test_pickapic_takes_what_people_preferred(tmp_path: Path) -> None:
    images = [encode(scene(i), "JPEG") for i in range(6)]
    table = pa.table(
        {
            "caption": ["one", "two", "tie", "seen"],
            "jpg_0": images[:4],
            "jpg_1": [images[4], images[5], images[0], images[1]],
            "label_0": [1.0, 0.0, 0.5, 1.0],
            "label_1": [0.0, 1.0, 0.5, 0.0],
            "image_0_uid": ["u0", "u1", "u2", "u5"],
            "image_1_uid": ["u4", "u5", "u0", "u1"],
        }
    )
    pq.write_table(table, tmp_path / "0.parquet")
    source = SourceConfig(path=str(tmp_path), layout="pickapic")
    rows = list(entries(source))
    assert [row["caption"] for row in rows] == ["one", "two"]
    store = source.store()
    assert [fetch(row, store, max_bytes=10**6) for row in rows] == [images[0], images[5]]


def test_pickapic_takes_every_image_with_every_caption_if_asked(tmp_path: Path) -> None:
    """Losers, ties and rows without a label too; an image of two captions is two inputs."""
    images = [encode(scene(i), "JPEG") for i in range(6)]
    table = pa.table(
        {
            "caption": ["one", "two", "tie", "two", "one"],
            "jpg_0": [images[i] for i in (0, 2, 0, 2, 4)],
            "jpg_1": [images[i] for i in (1, 3, 1, 5, 5)],
            "label_0": [1.0, 0.0, 0.5, None, 1.0],
            "image_0_uid": ["u0", "u2", "u0", "u2", None],
            "image_1_uid": ["u1", "u3", "u1", "u5", None],
        }
    )
    pq.write_table(table, tmp_path / "0.parquet")
    source = SourceConfig(path=str(tmp_path), layout="pickapic", pool="all")
    rows = list(entries(source))
    store = source.store()
    found = [(images.index(fetch(row, store, max_bytes=10**6)), row["caption"]) for row in rows]
    first = [(0, "one"), (1, "one"), (2, "two"), (3, "two"), (0, "tie"), (1, "tie")]
    assert found == [*first, (5, "two"), (4, "one"), (5, "one")]
    assert len({row["id"] for row in rows}) == len(rows)
    winners = source.model_copy(update={"pool": "winners"})
    assert digest(source) != digest(winners)
    assert "source.pool" not in results_of({"source": source}), "the digest stands for it"


def test_only_comparisons_have_a_pool(root: Path) -> None:
    source = SourceConfig(path=str(root), layout="folder", pool="all")
    with pytest.raises(InputError, match=r"^source\.pool=all is for pickapic; .* is folder$"):
        list(entries(source))


def test_a_parquet_file_of_paths(root: Path) -> None:
    table = pa.table(
        {
            "path": ["a.jpg", "../secret.jpg", None, "images/b.jpg", "gone.jpg"],
            "caption": ["a", "x", "x", None, "x"],
        }
    )
    pq.write_table(table, root / "index.parquet")
    expected = ["ok", "outside_root", "missing_file", "no_caption", "missing_file"]
    assert list(outcomes(root, "parquet")) == expected


@pytest.mark.parametrize(
    ("layout", "file", "content", "says"),
    [
        ("hpdv3", None, "", "there is no all.json"),
        ("hpdv3", "all.json", "{", "all.json is not valid JSON"),
        ("hpdv3", "all.json", "{}", "all.json must hold a list"),
        ("civitai", "prompts.json", "[]", "prompts.json must map"),
        ("pickapic", "a.parquet", None, "no label_0 column"),
    ],
)
def test_a_layout_that_is_not_there_is_named(
    layout: str, file: str | None, content: str | None, says: str, root: Path
) -> None:
    if file is not None and content is not None:
        (root / file).write_text(content)
    elif file is not None:
        pq.write_table(pa.table({"caption": ["x"], "image": [JPEG]}), root / file)
    with pytest.raises(InputError, match=says):
        list(entries(SourceConfig(path=str(root), layout=layout)))


def test_one_index_that_cannot_be_read_is_dropped_with_its_reason(root: Path) -> None:
    line = '{"file": "a.jpg", "caption": "one"}\n'
    (root / "1.jsonl").write_text(line)
    (root / "0.jsonl").symlink_to(root.parent / "secret.jpg")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"
    (root / "2.jsonl").write_text(pointer)
    assert list(outcomes(root, "jsonl")) == ["ok", "outside_root", "unreadable_file"]
    (root / "1.jsonl").unlink()
    with pytest.raises(InputError, match=r"set': 0\.jsonl points outside"):
        captions(root, "jsonl")


def test_paths_in_other_forms_find_the_file_that_is_there(root: Path) -> None:
    (root / "cafe\u0301.jpg").write_bytes(JPEG)
    names = [
        "café.jpg",
        "Images\\\\SUB\\\\b.JPG",
        "images/../A.jpg",
        "..\\\\secret.jpg",
        "none.jpg",
    ]
    lines = "".join(f'{{"image": "{name}", "caption": "x"}}\n' for name in names)
    (root / "index.jsonl").write_text(lines, encoding="utf-8")
    found = ["cafe\u0301.jpg", "images/sub/b.jpg", "a.jpg", "..\\secret.jpg", "none.jpg"]
    assert [uri for uri, _ in captions(root, "jsonl")] == found
    assert list(outcomes(root, "jsonl")) == ["ok", "ok", "ok", "missing_file", "missing_file"]

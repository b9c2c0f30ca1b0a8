"""Label files that are wrong: each ends in one clear line, or in entries dropped with a reason."""

from __future__ import annotations

import base64
import codecs
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus import encode, scene

from raypref.core.config import InputError
from raypref.images.decode import BadImage, ImageConfig, decode
from raypref.sources.base import LabelledImage, Pair
from raypref.sources.pairs import image_bytes, images_beside, labelled_images, labelled_pairs
from raypref.sources.store import SourceError, locate

A, B = (encode(scene(number), "PNG") for number in range(2))
CHOSEN = "prompt,chosen,rejected\n"
SIDES = "prompt,image_0,image_1,label\n"
NAMES = ("prompt", "chosen", "rejected")


def outcome(entry: Pair | LabelledImage, root: Path) -> str:
    """Why an entry is dropped, when it is listed or when its images are read; else "ok"."""
    if entry.problem:
        assert "\n" not in entry.problem and len(entry.problem) < 400
        return entry.problem.partition(":")[0]
    labels = locate(str(root))
    refs = (entry.first, entry.second) if isinstance(entry, Pair) else (entry.image,)
    for ref in refs:
        try:
            data = image_bytes(ref, labels, images_beside(labels), max_bytes=10**6)
            decode(data, ImageConfig(size=32))
        except (SourceError, BadImage) as error:
            return error.reason
    return "ok"


def source(root: Path, files: dict[str, str | bytes]) -> Path:
    """A folder of label files and images, with an image beside it that is none of its business."""
    base = root / "set"
    for name, data in {"images/a.png": A, "images/b.png": B, "../secret.png": A, **files}.items():
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return base


def outcomes(path: Path) -> list[str]:
    return [outcome(pair, path) for pair in labelled_pairs(locate(str(path)), "labelled")]


def row(chosen: str = "images/a.png", rejected: str = "images/b.png", prompt: str = "a cat") -> str:
    return f"{prompt},{chosen},{rejected}\n"


def parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def record(**more: object) -> dict[str, object]:
    return dict(zip(NAMES, ("a cat", "images/a.png", "images/b.png"), strict=True)) | more


GOOD = row()

DROPPED: dict[str, tuple[str, str | bytes, list[str]]] = {
    "header with byte order mark": ("l.csv", codecs.BOM_UTF8 + (CHOSEN + GOOD).encode(), ["ok"]),
    "semicolons": ("l.csv", (CHOSEN + GOOD).replace(",", ";"), ["ok"]),
    "tabs": ("l.tsv", (CHOSEN + GOOD).replace(",", "\t"), ["ok"]),
    "a field of many characters": (
        "l.csv",
        CHOSEN + row("x" * 200_000) + GOOD,
        ["bad_record", "ok"],
    ),
    "carriage returns": ("l.csv", (CHOSEN + GOOD * 2).replace("\n", "\r\n"), ["ok", "ok"]),
    "capitals and spaces in the header": ("l.csv", " Prompt ,CHOSEN,Rejected\n" + GOOD, ["ok"]),
    "Windows paths": ("l.csv", CHOSEN + row("images\\A.PNG", ".\\images\\b.png"), ["ok"]),
    "a Windows drive": ("l.csv", CHOSEN + row("C:\\images\\a.png"), ["missing_file"]),
    "an absolute path": ("l.csv", CHOSEN + row("/etc/passwd") + GOOD, ["outside_root", "ok"]),
    "a path that escapes": ("l.csv", CHOSEN + row("../secret.png"), ["outside_root"]),
    "an address": ("l.csv", CHOSEN + row("https://x.org/a.png"), ["bad_record"]),
    "labels that are none": (
        "l.csv",
        SIDES
        + "".join(
            f"a cat,images/a.png,images/b.png,{label}\n"
            for label in ("1", "0", "0.5", "0.0", "2", "left", "-1", "1e999", "", "nan")
        ),
        [*["ok"] * 4, *["bad_label"] * 4, "ok", "ok"],
    ),
    "the same image": ("l.csv", CHOSEN + row("images/a.png", "./images//a.png"), ["same_image"]),
    "an empty prompt": ("l.csv", CHOSEN + row(prompt="") + row(prompt="  "), ["no_caption"] * 2),
    "no path": ("l.csv", CHOSEN + row("") + row(rejected=" "), ["no_image"] * 2),
    "a missing image": ("l.csv", CHOSEN + row("images/gone.png") + GOOD, ["missing_file", "ok"]),
    "a directory as an image": ("l.csv", CHOSEN + row("images"), ["missing_file"]),
    "an image that is none": ("l.csv", CHOSEN + row("l.csv"), ["unreadable"]),
    "a comma without quotes": ("l.csv", CHOSEN + row(prompt="a cat, black"), ["bad_record"]),
    "a row that is too short": ("l.csv", CHOSEN + "a cat,images/a.png\n", ["no_image"]),
    "empty rows": ("l.csv", CHOSEN + "\n" + GOOD + ",,\n", ["ok"]),
    "Latin-1": (
        "l.csv",
        (CHOSEN + GOOD + row(prompt="café")).encode("latin-1"),
        ["ok", "bad_encoding"],
    ),
    "a truncated line": ("l.jsonl", lines(record()) + '{"prompt": "a', ["ok", "bad_record"]),
    "a line that is no object": ("l.jsonl", lines(record(), [1], "x"), ["ok", *["bad_record"] * 2]),
    "a JSON list instead of lines": ("l.jsonl", json.dumps([record(), record()]), ["ok", "ok"]),
    "a list over several lines": (
        "l.jsonl",
        json.dumps([record(), 3], indent=1),
        ["ok", "bad_record"],
    ),
    "an image in JSON": ("l.jsonl", lines(record(), record(chosen={"b": 1})), ["ok", "bad_record"]),
    "half a character": ("l.jsonl", lines(record(), record(prompt="\ud800")), ["ok", "no_caption"]),
    "confidence": (
        "l.jsonl",
        lines(*(record(confidence=x) for x in (0.5, None, float("nan"), "", "sure", float("inf")))),
        [*["ok"] * 4, *["bad_record"] * 2],
    ),
    "shares of votes": (
        "l.jsonl",
        lines(*(record(vote_share=x) for x in (0, 1, 1.5, -0.1, 70))),
        [*["ok"] * 2, *["bad_record"] * 3],
    ),
    "cells as bytes": (
        "l.parquet",
        parquet(prompt=["x"] * 2, chosen=[A, None], rejected=[B] * 2),
        ["ok", "no_image"],
    ),
    "cells as structs": (
        "l.parquet",
        parquet(
            prompt=["x"] * 2,
            chosen=[{"bytes": A, "path": None}, {"bytes": None, "path": "images/a.png"}],
            rejected=[{"bytes": B, "path": "b.png"}] * 2,
        ),
        ["ok", "no_image"],
    ),
    "cells as paths": (
        "l.parquet",
        parquet(
            prompt=["x"] * 2,
            chosen=["images/a.png", "../secret.png"],
            rejected=["images/b.png"] * 2,
        ),
        ["ok", "outside_root"],
    ),
    "cells as base64": (
        "l.parquet",
        parquet(
            prompt=["x"],
            chosen=[base64.b64encode(A + bytes(9999)).decode()],
            rejected=["data:image/png;base64,x"],
        ),
        ["bad_record"],
    ),
    "a zip as an image": (
        "l.parquet",
        parquet(prompt=["x"], chosen=[zipped("a.png", A)], rejected=[B]),
        ["unreadable"],
    ),
    "packed lines": ("l.jsonl.gz", gzip.compress(lines(record(), record()).encode()), ["ok", "ok"]),
    "a packed table": ("l.csv.gz", gzip.compress((CHOSEN + GOOD).encode()), ["ok"]),
}


@pytest.mark.parametrize("case", DROPPED)
def test_an_entry_that_cannot_be_used_is_dropped_with_a_reason(case, tmp_path):
    name, content, expected = DROPPED[case]
    root = source(tmp_path, {name: content})
    assert outcomes(root) == expected
    assert outcomes(root / name) == expected, "the file by its own name"


REFUSED: dict[str, tuple[dict[str, str | bytes], str]] = {
    "no header": ({"l.csv": GOOD}, r"l\.csv: no columns of labels; it has a cat, images/a\.png"),
    "a column is missing": (
        {"l.csv": "prompt,chosen,other\nx,images/a.png,y\n"},
        r"l\.csv: no column rejected; it has prompt, chosen, other\. Labelled pairs need",
    ),
    "no label": ({"l.csv": "prompt,image_0,image_1\nx,a,b\n"}, r"l\.csv: no column label; it has"),
    "a key is missing": ({"l.jsonl": lines({"prompt": "x", "chosen": "a"})}, "no column rejected"),
    "a column of Parquet is missing": (
        {"l.parquet": parquet(caption=["x"], rejected=[B])},
        r"l\.parquet: no column chosen; it has caption, rejected",
    ),
    "a column twice": (
        {"l.csv": "prompt,chosen,rejected,chosen\n" + GOOD},
        r"l\.csv: there are 2 columns chosen; rename one",
    ),
    "UTF-16": (
        {"l.csv": (CHOSEN + GOOD).encode("utf-16")},
        r"l\.csv is not UTF-8 text; save it as such",
    ),
    "a field that never ends": (
        {"l.csv": CHOSEN + GOOD + '"' + ("x" * 999 + "\n") * 17_000},
        r"l\.csv, line 3: a field has more than 16777216 characters; shorten it, or close its",
    ),
    "a quote left open": (
        {"l.csv": CHOSEN + GOOD + 'a "cat",images/a.png,images/b.png\n"open,a,b\n' + GOOD},
        r"l\.csv, line 4: .*a quote is left open",
    ),
    "an empty file": ({"l.csv": ""}, r"l\.csv: no columns of labels; it has none"),
    "an archive": ({"l.csv.zip": zipped("l.csv", b"")}, r"no \.csv.* file in '.*set'"),
    "broken packing": ({"l.csv.gz": b"\x1f\x8b" + bytes(9)}, r"l\.csv\.gz cannot be unpacked"),
    "cut packing": (
        {"l.jsonl.gz": gzip.compress(lines(record()).encode())[:-20]},
        r"l\.jsonl\.gz cannot be unpacked",
    ),
    "no Parquet": ({"l.parquet": b"PAR1" + bytes(40)}, r"l\.parquet is not a sound Parquet file"),
    "no Arrow": ({"l.arrow": bytes(40)}, r"l\.arrow is not a sound Arrow stream"),
    "a pointer": (
        {"l.parquet": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"},
        r"l\.parquet is a Git LFS pointer; run 'git lfs pull'",
    ),
    "lists as images": (
        {"l.parquet": parquet(prompt=["x"], chosen=[["a"]], rejected=[["b"]])},
        r"l\.parquet: the column chosen holds list",
    ),
    "an unfinished ledger": (
        {"l.parquet": parquet(prompt=["x"], chosen=[A], rejected=[B]), ".started.json": "{}"},
        r"is a ledger that is not complete; finish the run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_wrong_as_a_whole_is_refused_in_a_line(case, tmp_path):
    files, says = REFUSED[case]
    with pytest.raises(InputError, match=says) as caught:
        outcomes(source(tmp_path, files))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_an_entry_says_names_file_line_and_fix(tmp_path):
    table = SIDES + "a cat,images/a.png,images/b.png,left\n"
    store = locate(str(source(tmp_path, {"l.csv": table})))
    [pair] = labelled_pairs(store, "auto")
    assert pair.problem == (
        "bad_label: the label of line 2 of l.csv is 'left'; 1 says that the first image is "
        "preferred, 0 the second, 0.5 neither, empty no label"
    )
    assert pair.id == "l.csv#000000002"


def test_one_damaged_file_of_several_is_one_dropped_entry(tmp_path):
    sound = parquet(prompt=["x"], chosen=[A], rejected=[B])
    root = source(tmp_path, {"0.parquet": sound, "1.parquet": b"PAR1", "2.parquet": sound})
    assert outcomes(root) == ["ok", "ok", "unreadable_file"]


def test_files_beside_that_are_no_labels_are_left_alone(tmp_path):
    files = {"l.csv": CHOSEN + GOOD, "authors.csv": "image,author\na,b\n", "info.json": "{}"}
    assert outcomes(source(tmp_path, files)) == ["ok"]


def single(values: str, column: str) -> Callable[[Path], list[LabelledImage]]:
    def listed(root: Path) -> list[LabelledImage]:
        table = f"prompt,image,{column}\n"
        table += "".join(f"a cat,images/a.png,{value}\n" for value in values.split(" "))
        return list(labelled_images(locate(str(source(root, {"l.csv": table}))), "auto"))

    return listed


def test_single_images_have_scores_or_labels(tmp_path):
    found = single("good bad 1 0 True false GOOD  fine 2", "label")(tmp_path / "labels")
    assert [each.score for each in found[:8]] == [1, 0, 1, 0, 1, 0, 1, None]
    assert {outcome(each, tmp_path / "labels" / "set") for each in found[:8]} == {"ok"}
    assert [each.problem.partition(":")[0] for each in found[8:]] == ["bad_label"] * 2
    scores = single("3.5 -1 1e3  nan x inf", "score")(tmp_path / "scores")
    assert [each.score for each in scores[:5]] == [3.5, -1, 1000, None, None]
    assert [each.problem.partition(":")[0] for each in scores[5:]] == ["bad_record"] * 2


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_images_of_a_prompt_beyond_64_are_one_dropped_entry(form, tmp_path):
    ranks = [*range(70)]
    if form == "json":
        record = {"prompt": "x", "generations": [*map(str, ranks)], "ranking": ranks}
        (tmp_path / "train.json").write_text(json.dumps([record]))
    else:
        columns = {"prompt_id": ["p"] * 70, "prompt": ["x"] * 70, "image": [A, B] * 35}
        pq.write_table(pa.table(columns | {"rank": ranks, "overall_rating": ranks}),
                       tmp_path / "train.parquet")  # fmt: skip
    *pairs, last = labelled_pairs(locate(str(tmp_path)), "imagereward")
    assert len(pairs) == 64 * 63 // 2 and not any(pair.problem for pair in pairs)
    assert "has 70 images; the 6 after the first 64 are left out" in last.problem
    assert last.problem.startswith("bad_record: ") and last.id.endswith("/beyond")

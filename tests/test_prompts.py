"""Prompt files of every kind, and what is said about broken ones."""

from pathlib import Path

import pandas as pd
import pytest

from raypref.config import InputError
from raypref.evaluate.prompts import read_prompts


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("partiprompts.csv", 1632, "bond"),
        ("drawbench.csv", 200, "A red colored car."),
        ("pickapic_v2_test.txt", 500, None),
        ("dpg_bench.csv", 1065, None),
        ("geneval.jsonl", 553, "a photo of a bench"),
        ("hpdv2_photo.txt", 800, None),
        ("hpdv2_anime.txt", 781, None),  # 800 lines, 19 of them repeats
    ],
)
def test_published_sets(shared_data: Path, name: str, count: int, first: str | None) -> None:
    prompts = read_prompts(str(shared_data / "prompts" / name), limit=None)
    assert len(prompts) == len(set(prompts)) == count
    assert all(prompt == prompt.strip() != "" for prompt in prompts)
    assert first is None or prompts[0] == first


def test_blanks_and_repeats_go_and_the_order_stays(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffzebra\r\n\r\n  a cat \r\nzebra\r\na\u2028b\r\n   \r\n".encode())
    assert read_prompts(str(file), limit=None) == ["zebra", "a cat", "a\u2028b"]
    assert read_prompts(str(file), limit=2) == ["zebra", "a cat"]
    assert read_prompts(str(file), limit=99) == ["zebra", "a cat", "a\u2028b"]


@pytest.mark.parametrize("column", ["prompt", "Prompt", "caption"])
def test_every_kind_holds_the_same_prompts(tmp_path: Path, column: str) -> None:
    texts = ["one, with a comma", 'two "quoted"', "three\nlines", "vier Füße"]
    table = pd.DataFrame({"id": range(4), column: texts})
    table.to_csv(tmp_path / "p.csv", index=False)
    table.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "p.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        assert read_prompts(str(tmp_path / f"p.{suffix}"), limit=None) == texts


def test_a_short_csv_row_and_a_null_are_blanks(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,prompt\n1\n2,cat\n")
    pd.DataFrame({"caption": ["dog", None]}).to_parquet(tmp_path / "p.parquet")
    assert read_prompts(str(tmp_path / "p.csv"), limit=None) == ["cat"]
    assert read_prompts(str(tmp_path / "p.parquet"), limit=None) == ["dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b" \n\n", "p.txt holds no prompt"),
        ("p.csv", b"", "no column prompt or Prompt or caption; found none"),
        ("p.csv", b"prompt\n\n", "p.csv holds no prompt"),
        ("p.csv", b"text,x\na,b\n", "found text, x"),
        ("p.csv", b'prompt\n"' + b"a" * 200_000 + b'"\n', "line 1: field larger"),
        ("p.txt", b"ok\n\xff\xfe\n", "is not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n["b"]\n', "line 2: not a JSON object"),
        ("p.jsonl", b'{"text": "a"}\n', "line 1: no column"),
        ("p.jsonl", b'{"prompt": 3}\n', "line 1: the prompt is not text"),
        ("p.parquet", b"PAR1 no", "is not a Parquet file"),
        ("p.docx", b"x", "unknown kind of prompt file '.docx'"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_prompts(str(file), limit=None)
    assert message in str(error.value) and str(file) in str(error.value)


def test_numbers_are_no_prompts(tmp_path: Path) -> None:
    pd.DataFrame({"prompt": [1, 2]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="column 'prompt' holds int64, not text"):
        read_prompts(str(tmp_path / "p.parquet"), limit=None)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match=r"no prompt file 'nowhere/p\.txt'"):
        read_prompts("nowhere/p.txt", limit=None)

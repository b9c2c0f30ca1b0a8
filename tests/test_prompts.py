"""Prompt files of every kind, and what is said about broken ones."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from raypref.core.config import InputError
from raypref.sources.prompt_files import read_prompts
from raypref.sources.prompts import Prompt


def texts_of(path: Path, *, limit: int | None = None) -> list[str]:
    return [prompt.text for prompt in read_prompts(str(path), limit=limit)]


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
    prompts = texts_of(shared_data / "prompts" / name)
    assert len(prompts) == len(set(prompts)) == count
    assert all(prompt == prompt.strip() != "" for prompt in prompts)
    assert first is None or prompts[0] == first


def test_blanks_and_repeats_go_and_the_order_stays(tmp_path: Path) -> None:
    file = tmp_path / "p.txt"
    file.write_bytes("\ufeffzebra\r\n\r\n  a cat \r\nzebra\r\na\u2028b\r\n   \r\n".encode())
    assert texts_of(file) == ["zebra", "a cat", "a\u2028b"]
    assert texts_of(file, limit=2) == ["zebra", "a cat"]
    assert texts_of(file, limit=99) == ["zebra", "a cat", "a\u2028b"]


@pytest.mark.parametrize("column", ["prompt", "Prompt", "caption"])
def test_every_kind_holds_the_same_prompts(tmp_path: Path, column: str) -> None:
    texts = ["one, with a comma", 'two "quoted"', "three\nlines", "vier Füße"]
    table = pd.DataFrame({"id": range(4), column: texts})
    table.to_csv(tmp_path / "p.csv", index=False)
    table.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "p.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        assert texts_of(tmp_path / f"p.{suffix}") == texts


def test_a_short_csv_row_and_a_null_are_blanks(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("id,prompt\n1\n2,cat\n")
    pd.DataFrame({"caption": ["dog", None]}).to_parquet(tmp_path / "p.parquet")
    assert texts_of(tmp_path / "p.csv") == ["cat"]
    assert texts_of(tmp_path / "p.parquet") == ["dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b" \n\n", "p.txt holds no prompt"),
        ("p.csv", b"", "no column prompt or Prompt or caption; found none"),
        ("p.csv", b"prompt\n\n", "p.csv holds no prompt"),
        ("p.csv", b"text,x\na,b\n", "found text, x"),
        ("p.csv", b'prompt\n"' + b"a" * 200_000 + b'"\n', "line 2: a field has more"),
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


# ------------------------------------------------------------------ categories


def counts(prompts: list[Prompt], grouping: str) -> Counter[str]:
    return Counter(prompt.groups[grouping] for prompt in prompts if grouping in prompt.groups)


def test_categories_of_the_published_sets(shared_data: Path) -> None:
    def read(name: str) -> list[Prompt]:
        return read_prompts(str(shared_data / "prompts" / name), limit=None)

    parti = read("partiprompts.csv")
    assert len(counts(parti, "category")) == 12 and len(counts(parti, "challenge")) == 11
    assert counts(parti, "category")["Abstract"] == 51 and parti[0].category == "Abstract"
    assert len(counts(read("drawbench.csv"), "category")) == 11
    assert counts(read("geneval.jsonl"), "tag") == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    dpg = read("dpg_bench.csv")
    assert len({prompt.id for prompt in dpg}) == 1065 and dpg[0].id == "0" and not dpg[0].groups
    assert not any(prompt.groups for prompt in read("pickapic_v2_test.txt"))


def test_a_folder_of_four_styles(shared_data: Path, tmp_path: Path) -> None:
    styles = ("anime", "concept_art", "paintings", "photo")
    for style in styles:
        shutil.copy(shared_data / "prompts" / f"hpdv2_{style}.txt", tmp_path)
    found = counts(read_prompts(str(tmp_path), limit=None), "style")
    assert set(found) == set(styles) and found["photo"] == 800 and found["anime"] == 781


def test_the_originals_layouts(tmp_path: Path) -> None:
    hpd = tmp_path / "benchmark"  # ymhao/HPDv2: a plain list a style
    hpd.mkdir()
    (hpd / "anime.json").write_text('["a girl", "a cat"]')
    (hpd / "concept-art.json").write_text('["a ship"]')
    assert read_prompts(str(hpd), limit=None) == [
        Prompt("a girl", {"style": "anime"}),
        Prompt("a cat", {"style": "anime"}),
        Prompt("a ship", {"style": "concept-art"}),
    ]
    dpg = tmp_path / "prompts"  # TencentQQGYLab/ELLA: one prompt per file
    dpg.mkdir()
    (dpg / "0.txt").write_text("An expansive field.\n")
    (dpg / "partiprompts12.txt").write_text("A dog.")
    assert [(p.id, p.text) for p in read_prompts(str(dpg), limit=None)] == [
        ("0", "An expansive field."),
        ("partiprompts12", "A dog."),
    ]
    tsv = tmp_path / "PartiPrompts.tsv"  # google-research/parti: quotes are the prompt's own
    head = "Prompt\tCategory\tChallenge\tNote"
    rows = ['"hi" and "ho\tIllustrations\tBasic\t', "bond\tAbstract\tBasic\tx"]
    tsv.write_text("\n".join([head, *rows]))
    first, second = read_prompts(str(tsv), limit=None)
    assert first == Prompt('"hi" and "ho', {"category": "Illustrations", "challenge": "Basic"})
    assert second.text == "bond"
    pick = tmp_path / "pick.parquet"  # yuvalkirstain/pickapic_v2: the images are not read
    columns = {"caption": ["x", "x"], "jpg_0": [b"1", b"2"], "label_0": [1.0, 0.5]}
    pd.DataFrame(columns).to_parquet(pick)
    assert read_prompts(str(pick), limit=None) == [Prompt("x")]


def test_hidden_and_system_files_in_a_folder_are_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("a cat\n")
    (tmp_path / "._own.txt").write_bytes(b"\0\5\x16\xff")
    assert texts_of(tmp_path) == ["a cat"]


def test_one_s_own_file_may_have_a_category(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("prompt,category\na cat,animals\na car,\n")
    first, second = read_prompts(str(tmp_path / "own.csv"), limit=None)
    assert (first.category, second.category) == ("animals", "")


SOUND = {
    "p.txt": b"a red ball\nzwei H\xc3\xa4user\n",
    "p.csv": b'prompt,category\n"a ball, red",x\ntwo houses,y\n',
    "p.tsv": b"Prompt\tCategory\na ball\tx\n",
    "p.jsonl": b'{"prompt": "a ball", "tag": "x"}\n{"prompt": "b", "id": 7}\n',
    "p.json": b'["a ball", {"caption": "two"}]',
}


@pytest.mark.parametrize("name", [*SOUND, "p.parquet"])
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    whole = SOUND.get(name, b"")
    if not whole:
        pd.DataFrame({"prompt": ["a ball", "two"], "style": ["x", "y"]}).to_parquet(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
    rng = random.Random(name)
    for _ in range(300):
        data = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(0, 6)):
            place = rng.randrange(len(data) + 1)
            data[place : place + rng.randrange(3)] = rng.choice(
                [b"\0", b'"', b"\xff", b"\n", b",", b"[" * 2000, b"\\ud800", b"{}", b"null", b"7"]
            )
        (tmp_path / name).write_bytes(data)
        try:
            for prompt in read_prompts(str(tmp_path / name), limit=None):
                assert prompt.text.encode()
        except InputError as error:
            assert "\n" not in str(error)

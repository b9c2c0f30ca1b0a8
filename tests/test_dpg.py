"""DPG-Bench's rules by hand, and the stage with a model that answers from a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from corpus import scene
from PIL import Image

from raypref.core.config import InputError, Resources
from raypref.core.rows import Row
from raypref.engine.batches import in_batches
from raypref.evaluate.dpg import (
    AskQuestions,
    Question,
    counted_questions,
    image_score,
    read_questions,
)
from raypref.images.decode import encode_png

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language\n"
)
CSV = HEADER + (
    'whoops1,"A red dog, and  a cat",dog,1,0,entity,whole,entity - whole (dog),Is there a dog?\n'
    'whoops1,"A red dog, and a cat",cat,2,0,entity,whole,entity - whole (cat),Is there a cat?\n'
    'whoops1,"A red dog, and a cat",red,3,1,attribute,color,attribute - color,Is the dog red?\n'
    'whoops1,"A red dog, and a cat",by,4,"1, 2",relation,spatial,relation,Are they side by side?\n'
    'whoops1,"A red dog, and a cat",near,5,4,relation,spatial,relation,Do they touch?\n'
    "coco7,A quiet sea,sea,1,0,global,,global,Is it quiet?\n"
    "coco7,A quiet sea,sea,2,0,entity,whole,entity - whole (sea),Is there a sea?\n"
)


@pytest.fixture
def table(tmp_path) -> dict[str, list[Question]]:
    (tmp_path / "dpg_bench.csv").write_text(CSV, encoding="utf-8")
    return read_questions(str(tmp_path / "dpg_bench.csv"))


def test_the_table_is_read(table):
    assert list(table) == ["A red dog, and a cat", "A quiet sea"]
    dog = table["A red dog, and a cat"]
    assert [question.number for question in dog] == [1, 2, 3, 4, 5]
    assert dog[3] == Question(4, "Are they side by side?", (1, 2), "relation", "spatial")
    assert dog[0].parents == ()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([True, True, True, True, True], [True, True, True, True, True]),
        ([False, True, True, True, True], [False, True, False, False, False]),
        ([True, False, True, True, True], [True, False, True, False, False]),  # 5 through 4
        ([True, True, False, False, True], [True, True, False, False, False]),
        ([False] * 5, [False] * 5),
    ],
)
def test_a_question_counts_only_with_its_parents(table, answers, expected):
    questions = table["A red dog, and a cat"]
    assert counted_questions(questions, answers) == expected
    assert image_score(questions, answers) == pytest.approx(sum(expected) / 5)
    # In whatever order they stand.
    assert counted_questions(questions[::-1], answers[::-1]) == expected[::-1]


def test_odd_dependencies_end(table):
    circle = [Question(1, "a", (2,), "x", ""), Question(2, "b", (1, 9), "x", "")]
    assert counted_questions(circle, [True, True]) == [True, True]
    assert counted_questions(circle, [True, False]) == [False, False]


class FromTable:
    """Answers by the image's colour and the question; counts the batches."""

    def __init__(self, yes: set[tuple[int, str]]) -> None:
        self.resources = Resources(batch=3)
        self.yes = yes
        self.asked: list[int] = []

    def load(self) -> FromTable:
        return self

    def says_yes(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[bool]:
        self.asked.append(len(questions))
        pixels = [image.getpixel((0, 0))[0] for image in images]  # type: ignore[index]
        return [pair in self.yes for pair in zip(pixels, questions, strict=True)]


def plain(red: int) -> bytes:
    return encode_png(Image.new("RGB", (8, 8), (red, 0, 0)))


def test_the_stage_asks_every_question_of_every_image(table):
    dog = ["Is there a dog?", "Is there a cat?", "Is the dog red?", "Do they touch?"]
    model = FromTable({(10, text) for text in dog} | {(20, "Is there a sea?")})
    stage = AskQuestions(model, table, column="image", prompt="prompt")
    rows: list[Row] = [
        {"image": plain(10), "prompt": "A red dog, and a cat"},
        {"image": plain(20), "prompt": "A quiet sea"},
        {"image": plain(30), "prompt": "A quiet sea"},
        {"image": encode_png(scene()), "prompt": "A loud sea"},
        {"image": plain(20), "prompt": "A  quiet sea"},
    ]
    stage.setup()
    in_batches(stage, rows)
    assert rows[0]["dpg_answers"] == [True, True, True, False, True]
    assert [row.get("dpg") for row in rows] == [pytest.approx(60), 50, 0, None, 50]
    assert [row.get("reject_reason") for row in rows] == [None, None, None, "no_questions", None]
    assert model.asked == [3, 3, 3, 3], "eleven questions, in batches of one size"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEADER, "holds no question"),
        ("item_id,text\n1,a\n", "no column proposition_id, dependency"),
        (HEADER + "1,a,k,one,0,entity,whole,t,q\n", "line 2: .*'one'"),
        (HEADER + "1,a,k,1,?,entity,whole,t,q\n", "line 2: .*"),
        (HEADER + "1,a,k,1\n", "line 2"),
    ],
)
def test_a_wrong_table_is_named(text, says, tmp_path):
    (tmp_path / "wrong.csv").write_text(text)
    with pytest.raises(InputError, match=rf"wrong\.csv.*{says}"):
        read_questions(str(tmp_path / "wrong.csv"))


def test_a_missing_table_says_where_it_is(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.csv.*TencentQQGYLab/ELLA"):
        read_questions(str(tmp_path / "none.csv"))

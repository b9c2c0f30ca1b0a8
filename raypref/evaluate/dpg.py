"""DPG-Bench: questions about a prompt, asked of a model, and what the answers are worth.

Hu et al. 2024 (ELLA), after the Davidsonian scene graph: a question counts only if those it depends
on were answered with yes. The published numbers come from mPLUG-large as the model that answers;
those of another model cannot be compared with them.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from PIL import Image

from raypref.core.config import InputError, Resources
from raypref.core.rows import Row, padded, reject, without_copies
from raypref.engine.loaded import shared
from raypref.images.decode import as_image

ORIGIN = "https://github.com/TencentQQGYLab/ELLA (dpg_bench/dpg_bench.csv)"
COLUMNS = (
    *("item_id", "text", "proposition_id", "dependency"),
    *("category_broad", "category_detailed", "question_natural_language"),
)


@dataclass(frozen=True)
class Question:
    """One question about a prompt."""

    number: int  # within its prompt, from 1
    text: str
    parents: tuple[int, ...]  # numbers of the questions it depends on
    category: str  # global, entity, attribute, relation, other
    detail: str  # color, whole, spatial, ...


Table = Mapping[str, Sequence[Question]]  # by prompt, see `prompt_key`
Asked = list[tuple[Image.Image, str]]  # an image and a question about it, for one batch


class Answerer(Protocol):
    """A model that can be asked about images."""

    def says_yes(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[bool]:
        """Whether it says yes, rather than no, to each question about its image."""


class AnswererConfig(Protocol):
    """Settings from which such a model is loaded (`VQAScoreConfig`)."""

    @property
    def resources(self) -> Resources:
        """What a worker that holds the model needs; `batch` is in questions."""

    def load(self) -> Answerer:
        """Load the model onto its device."""


def prompt_key(prompt: str) -> str:
    """The prompt without differences in spaces, by which its questions are found."""
    return " ".join(prompt.split())


def read_questions(path: str) -> dict[str, list[Question]]:
    """ELLA's table `dpg_bench.csv`, by prompt.

    All rows count; the released script leaves out the first one by mistake.

    Raises:
        InputError: the file is missing, lacks a column, or a line cannot be read; names the line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"no question table '{path}'; get it from {ORIGIN}")
    table: dict[str, list[Question]] = defaultdict(list)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise InputError(f"{path}: no column {', '.join(missing)}; is it from {ORIGIN}?")
        try:
            for row in reader:
                table[prompt_key(row["text"])].append(_question(row))
        except (ValueError, AttributeError, csv.Error) as error:  # a short line holds None
            raise InputError(f"{path}, line {reader.line_num}: {error}") from None
    if not table:
        raise InputError(f"{path} holds no question")
    return dict(table)


def _question(row: Mapping[str, str]) -> Question:
    parents = (int(number) for number in row["dependency"].split(","))
    return Question(
        number=int(row["proposition_id"]),
        text=row["question_natural_language"].strip(),
        parents=tuple(number for number in parents if number),  # 0: none
        category=row["category_broad"].strip(),
        detail=row["category_detailed"].strip(),
    )


def counted_questions(questions: Sequence[Question], answers: Sequence[bool]) -> list[bool]:
    """Which answers count as yes: those that are, and whose parents' count as well.

    A parent that is not in the table holds nothing back.
    """
    yes = {question.number: said for question, said in zip(questions, answers, strict=True)}
    for _ in questions:  # the longest chain
        for question in questions:
            parents = (yes.get(number, True) for number in question.parents)
            yes[question.number] = yes[question.number] and all(parents)
    return [yes[question.number] for question in questions]


def image_score(questions: Sequence[Question], answers: Sequence[bool]) -> float:
    """Part of the questions that count as yes, 0 to 1."""
    return sum(counted_questions(questions, answers)) / len(questions)


class AskQuestions:
    """Transform: ask a model all questions about an image's prompt.

    Args:
        config: the model.
        table: the questions; a row whose prompt has none is rejected.
        column: holds the image.
        prompt: holds the prompt.
    """

    name = "dpg"
    writes = pa.schema([("dpg", pa.float32()), ("dpg_answers", pa.list_(pa.bool_()))])

    def __init__(self, config: AnswererConfig, table: Table, *, column: str, prompt: str) -> None:
        self.config = config
        self.table = table
        self.column = column
        self.prompt = prompt
        self.reads: tuple[str, ...] = (column, prompt)
        self.resources = config.resources

    def setup(self) -> None:
        """Load the model."""
        self.model = shared(self.config, self.config.load)

    def prepare(self, rows: list[Row]) -> list[Asked]:
        """All questions about the rows' images, in order, in batches as large as this one."""
        pairs = [
            (image, question.text)
            for row in without_copies(rows)
            for image in [as_image(row[self.column])]
            for question in self._questions(row)
        ]
        size = len(rows)
        return [padded(pairs[start : start + size], size) for start in range(0, len(pairs), size)]

    def compute(self, batch: list[Asked]) -> list[bool]:
        """The answers; those to copies come last."""
        return [said for asked in batch for said in self.model.says_yes(*zip(*asked, strict=True))]

    def finish(self, rows: list[Row], out: list[bool]) -> None:
        """Fill the columns; a row without questions is rejected."""
        answers = iter(out)
        for row in rows:
            questions = self._questions(row)
            if not questions:
                reject(row, self.name, "no_questions", "the prompt is not in the question table")
                continue
            row["dpg_answers"] = [next(answers) for _ in questions]
            row["dpg"] = 100 * image_score(questions, row["dpg_answers"])  # percent, as published

    def _questions(self, row: Row) -> Sequence[Question]:
        return self.table.get(prompt_key(row[self.prompt]), ())

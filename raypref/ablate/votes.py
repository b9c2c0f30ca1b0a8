"""People's votes between two images, as a CSV, and what a model won, tied and lost by them.

As in the paper's study (appendix A.3): votes are counted per prompt. A prompt is won where more
raters took ours than the other, tied where as many did, lost otherwise. A vote for neither counts
for neither.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from raypref.core.config import InputError

COLUMNS = ("prompt_id", "category", "rater", "left", "right", "choice")
CHOICES = ("left", "right", "tie")
KEY = "ablate.votes"


class Vote(NamedTuple):
    """What a rater said of two images of a prompt."""

    prompt_id: str
    category: str  # as `concept_art`: lower case, words joined by underscores
    rater: str
    left: str  # names of models
    right: str
    choice: str  # one of CHOICES

    @property
    def chosen(self) -> str:
        """The model whose image was preferred; empty for neither."""
        return {"left": self.left, "right": self.right}.get(self.choice, "")


class PromptOutcome(NamedTuple):
    """How a prompt ended between two models."""

    prompt_id: str
    category: str
    outcome: str  # "win", "tie" or "lose" of the first


def read_votes(path: str) -> list[Vote]:
    """The votes of a CSV file with the columns `COLUMNS`; others are ignored.

    Raises:
        InputError: no such file, a column is missing, or a line cannot be a vote; names the line.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{KEY}: no file '{path}'")
    votes: list[Vote] = []
    before: dict[tuple[str, str, frozenset[str]], int] = {}
    categories: dict[str, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise InputError(f"{path}: no column {', '.join(missing)}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                vote = _vote(row, where)
                key = vote.rater, vote.prompt_id, frozenset((vote.left, vote.right))
                if key in before:
                    raise InputError(
                        f"{where}: rater {vote.rater} voted on prompt {vote.prompt_id} and these "
                        f"models in line {before[key]} already; keep one of the two"
                    )
                before[key] = reader.line_num
                if (other := categories.setdefault(vote.prompt_id, vote.category)) != vote.category:
                    raise InputError(
                        f"{where}: prompt {vote.prompt_id} is of category '{vote.category}', and "
                        f"of '{other}' above"
                    )
                votes.append(vote)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV of UTF-8 text: {error}") from None
    if not votes:
        raise InputError(f"{path} holds no vote")
    return votes


def _vote(row: dict[str, str | None], where: str) -> Vote:
    values = {name: (row[name] or "").strip() for name in COLUMNS}
    if empty := [name for name in COLUMNS if name != "category" and not values[name]]:
        raise InputError(f"{where}: no value for {', '.join(empty)}")
    if values["choice"] not in CHOICES:
        raise InputError(f"{where}: choice={values['choice']}: it is one of {', '.join(CHOICES)}")
    if values["left"] == values["right"]:
        raise InputError(f"{where}: left and right are the same model, {values['left']}")
    category = values["category"].lower().replace("-", "_").replace(" ", "_")
    return Vote(**(values | {"category": category}))


def prompt_outcomes(votes: Sequence[Vote], model: str, other: str) -> list[PromptOutcome]:
    """How each prompt with votes between two models ended for the first, in order of appearance."""
    own = [vote for vote in votes if {vote.left, vote.right} == {model, other}]
    balance: dict[str, int] = {}
    for vote in own:
        step = (vote.chosen == model) - (vote.chosen == other)
        balance[vote.prompt_id] = balance.get(vote.prompt_id, 0) + step
    category = {vote.prompt_id: vote.category for vote in own}
    return [
        PromptOutcome(name, category[name], "win" if won > 0 else "lose" if won < 0 else "tie")
        for name, won in balance.items()
    ]

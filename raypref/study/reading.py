"""A table of votes, of a study or of other people's, with its mistakes named by line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypref.core.config import InputError

if TYPE_CHECKING:
    import pandas as pd

NEEDED = ("prompt_id", "category", "rater", "left", "right", "choice")
FLAGS = ("attention", "repeat")
CHOICES = ("left", "right", "tie")


def read_votes(path: str, *, key: str = "") -> pd.DataFrame:
    """The votes of a CSV or Parquet file, or of a study's folder that holds `votes.parquet`.

    The columns `NEEDED` are enough. Without `attention` and `repeat` no vote is an attention check
    or a repeat; without `item` the prompt and its two models are the item.

    Args:
        path: where the votes are.
        key: the setting that names them, for the messages.

    Returns:
        A row per vote with these columns as text and the flags as booleans; further ones of a
        Parquet file stay as they are.

    Raises:
        InputError: no such file, a column is missing, or a line cannot be a vote; names the line.
    """
    import pandas as pd

    file, prefix = Path(path).expanduser(), f"{key}: " if key else ""
    if file.is_dir():
        file = file / "votes.parquet"
    if not file.is_file():
        hint = "" if key else "; raypref study votes STUDY writes them"
        raise InputError(f"{prefix}no file '{file}'{hint}")
    if file.suffix == ".parquet":
        try:
            votes = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{file} is no Parquet file: {error}") from None
        _require_columns(file, list(votes))
        text = votes[list(NEEDED)].fillna("").astype(str)
        rows = [(f"{file}, row {n}", row) for n, row in enumerate(text.to_dict("records"), 1)]
        flags = {name: votes[name].astype(bool) for name in FLAGS if name in votes}
    else:
        rows = list(_of_csv(file))
        votes = pd.DataFrame([row for _, row in rows], columns=[*(rows[0][1] if rows else NEEDED)])
        flags = {n: votes[n].str.strip().str.lower() == "true" for n in FLAGS if n in votes}
    for name in FLAGS:
        votes[name] = flags.get(name, False)
    _check([where for where, _ in rows], [row for _, row in rows], votes)
    for name in NEEDED:
        votes[name] = [(row[name] or "").strip() for _, row in rows]
    if not len(votes):
        raise InputError(f"{file} holds no vote")
    if "item" not in votes:
        sides = ["/".join(sorted(pair)) for pair in zip(votes.left, votes.right, strict=True)]
        votes["item"] = votes["prompt_id"] + "/" + sides
    return votes


def _require_columns(file: Path, there: list[str]) -> None:
    if missing := [name for name in NEEDED if name not in there]:
        raise InputError(f"{file}: no column {', '.join(missing)}")


def _of_csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row, and where it is."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            _require_columns(file, list(reader.fieldnames or ()))
            for row in reader:
                yield (
                    f"{file}, line {reader.line_num}",
                    {k: row[k] or "" for k in reader.fieldnames or ()},
                )
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is no CSV of UTF-8 text: {error}") from None


def _check(places: list[str], rows: list[dict[str, Any]], votes: pd.DataFrame) -> None:
    """See that each row is a vote, once, of a prompt of one category."""
    before: dict[Any, str] = {}
    categories: dict[str, str] = {}
    counted = ~(votes["attention"] | votes["repeat"])
    for where, row, counts in zip(places, rows, counted, strict=True):
        own = {name: (row[name] or "").strip() for name in NEEDED}
        if empty := [name for name in NEEDED if name != "category" and not own[name]]:
            raise InputError(f"{where}: no value for {', '.join(empty)}")
        if own["choice"] not in CHOICES:
            said = ", ".join(CHOICES)
            raise InputError(f"{where}: choice={own['choice']}: it is one of {said}")
        if own["left"] == own["right"]:
            raise InputError(f"{where}: left and right are the same model, {own['left']}")
        if not counts:
            continue
        prompt, category = own["prompt_id"], own["category"]
        vote = own["rater"], prompt, frozenset((own["left"], own["right"]))
        if vote in before:
            raise InputError(
                f"{where}: rater {own['rater']} voted on prompt {prompt} and these models in "
                f"{before[vote].rpartition(', ')[2]} already; keep one of the two"
            )
        before[vote] = where
        if (other := categories.setdefault(prompt, category)) != category:
            raise InputError(
                f"{where}: prompt {prompt} is of category '{category}', and of '{other}' above"
            )

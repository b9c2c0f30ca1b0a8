"""What a study's votes say, as lines, Markdown, CSV and a page beside the votes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raypref.core.config import InputError
from raypref.core.ledger import write_bytes
from raypref.core.progress import counted
from raypref.evaluate.tables import markdown_row, plain_csv
from raypref.report.voted import render
from raypref.study.results import ALL, Results, results_of

if TYPE_CHECKING:
    import pandas as pd

FLAGS = ("attention", "repeat")
NEEDED = ("prompt_id", "category", "rater", "left", "right", "choice")
CHOICES = {"left", "right", "tie"}


def read_votes(path: str) -> pd.DataFrame:
    """The votes of `votes.parquet`, `votes.csv`, or a study's folder that holds them.

    A table of other people's needs the columns `NEEDED` alone: the others are then as if there
    were no attention checks and no repeats.

    Raises:
        InputError: no such file, a column is missing, or a value is none; names the row.
    """
    import pandas as pd

    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "votes.parquet"
    if not file.is_file():
        raise InputError(f"{path}: no votes there; raypref study votes STUDY writes them")
    try:
        if file.suffix == ".csv":
            votes = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        else:
            votes = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no table of votes: {error}") from None
    if missing := [name for name in NEEDED if name not in votes]:
        raise InputError(f"{file}: no column {', '.join(missing)}")
    for row, choice in enumerate(votes["choice"], start=1):
        if choice not in CHOICES:
            raise InputError(f"{file}, vote {row}: choice={choice}; it is left, right or tie")
    for name in FLAGS:
        told = votes[name].astype(str) if name in votes else "false"
        votes = votes.assign(**{name: told})
        votes[name] = votes[name].str.lower() == "true"
    if "item" not in votes:
        sides = votes[["left", "right"]].apply(lambda row: "/".join(sorted(row)), axis=1)
        votes["item"] = votes["prompt_id"] + "/" + sides
    return votes


def summarise_votes(path: str, *, least_checks: float) -> tuple[Path, Results]:
    """Write `results.md`, `results.csv` and `results.html` beside the votes.

    Args:
        path: of the votes, or of the study's folder.
        least_checks: share of attention checks that a rater must pass to be counted.

    Returns:
        The folder that they are in, and the numbers.
    """
    results = results_of(read_votes(path), least_checks=least_checks)
    at = Path(path).expanduser()
    folder = at if at.is_dir() else at.parent
    files = {
        "results.md": "\n".join([*lines(results), "", *tables(results)]) + "\n",
        "results.csv": plain_csv(results.outcomes),
        "results.html": render(results, lead=list(lines(results))),
    }
    for name, text in files.items():
        write_bytes(str(folder / name), text.encode())
    return folder, results


def lines(results: Results) -> Iterator[str]:
    """The results in a few sentences."""
    own = results.raters[~results.raters["left_out"]]
    yield f"{counted(results.n_votes, 'vote')} of {counted(len(own), 'rater')}."
    for row in results.outcomes[results.outcomes["category"] == ALL].itertuples():
        yield (
            f"{row.model} against {row.other}: wins {row.win:.2f}% of {row.n_prompts} prompts "
            f"[{row.win_low:.2f}, {row.win_high:.2f}], ties {row.tie:.2f}%, loses {row.loss:.2f}%."
        )
    for row in results.agreement.itertuples():
        if not math.isnan(row.alpha):
            yield (
                f"Raters agree on {row.model} and {row.other} with alpha {row.alpha:.2f} "
                f"[{row.low:.2f}, {row.high:.2f}] (1: wholly, 0: by chance)."
            )
    share, low, high = (100 * value for value in results.left)
    if not math.isnan(share):
        habit = "" if low <= 50 <= high else ": raters have a habit"
        yield f"The left image took {share:.1f}% of decided votes [{low:.1f}, {high:.1f}]{habit}."
    if again := int(own["repeats"].sum()):
        alike = int(own["repeats_alike"].sum())
        yield f"Of {counted(again, 'repeated pair')} {alike} were answered alike."
    for row in results.raters[results.raters["left_out"]].itertuples():
        yield (
            f"Left out: rater {row.rater}, who passed {row.checks_passed} of {row.checks} "
            "attention checks."
        )


def tables(results: Results) -> Iterator[str]:
    """The same as Markdown tables."""
    yield from _table(
        ("model", "against", "category", "win %", "tie %", "lose %", "95% of wins", "prompts"),
        (
            (
                *(row.model, row.other, row.category),
                *(f"{value:.2f}" for value in (row.win, row.tie, row.loss)),
                *(f"[{row.win_low:.2f}, {row.win_high:.2f}]", str(row.n_prompts)),
            )
            for row in results.outcomes.itertuples()
        ),
    )
    yield from _table(
        ("model", "Bradley-Terry strength", "95%", "preferred to the mean model", "votes"),
        (
            (
                *(row.model, f"{row.strength:+.2f}", f"[{row.low:+.2f}, {row.high:+.2f}]"),
                *(f"{100 * row.against_mean:.1f}%", str(row.n_votes)),
            )
            for row in results.strengths.itertuples()
        ),
    )


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield markdown_row(head)
    yield markdown_row("---" for _ in head)
    yield from (markdown_row(row) for row in rows)
    yield ""

"""What a study's votes say, as lines, Markdown, CSV and a page beside the votes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from raypref.core.ledger import write_bytes
from raypref.core.progress import counted
from raypref.evaluate.tables import markdown_row, plain_csv
from raypref.report.voted import render
from raypref.study.reading import read_votes
from raypref.study.results import ALL, VoteResults, results_of_votes


def summarise_votes(path: str, *, least_checks: float) -> tuple[Path, VoteResults]:
    """Write `results.md`, `results.csv` and `results.html` beside the votes.

    Args:
        path: of the votes, or of the study's folder.
        least_checks: share of attention checks that a rater must pass to be counted.

    Returns:
        The folder that they are in, and the numbers.
    """
    results = results_of_votes(read_votes(path), least_checks=least_checks)
    at = Path(path).expanduser()
    folder = at if at.is_dir() else at.parent
    files = {
        "results.md": "\n".join([*result_lines(results), "", *result_tables(results)]) + "\n",
        "results.csv": plain_csv(results.outcomes),
        "results.html": render(results, lead=list(result_lines(results))),
    }
    for name, text in files.items():
        write_bytes(str(folder / name), text.encode())
    return folder, results


def result_lines(results: VoteResults) -> Iterator[str]:
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


def result_tables(results: VoteResults) -> Iterator[str]:
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

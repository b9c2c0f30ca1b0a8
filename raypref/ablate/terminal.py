"""What a table says in the terminal: means and gains as wide as it is, and what moved."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from raypref.ablate.claims import Tested, summary_of
from raypref.ablate.results import BANNER, REAL_MODELS, Results, direction
from raypref.evaluate.labels import gain_text, heading, score_text

NARROWEST = 60  # columns
CELL = 20  # columns of a metric, with what parts it from the next

SIGNS = "▲ ▼: the gain's 95% interval excludes zero; ≈: it includes zero."


def printed(results: Results, tested: Sequence[Tested], *, width: int = 0) -> str:
    """Means, gains and claims as text.

    Args:
        results: all numbers of the table.
        tested: its claims with their verdicts.
        width: columns; 0: those of the terminal.
    """
    columns = max(NARROWEST, width or shutil.get_terminal_size((100, 24)).columns)
    metrics = results.metrics()
    label = min(max(map(len, [*results.labels.values(), f"  {results.paper}"])), columns * 2 // 5)
    each = max(1, (columns - label - 4) // CELL)
    target = io.StringIO()
    console = Console(
        file=target, width=columns, markup=False, highlight=False, emoji=False, color_system=None
    )
    console.print(results.table.title)
    if results.paper == REAL_MODELS:
        console.print(BANNER)
    for start in range(0, len(metrics), each):
        console.print()
        console.print(_grid(results, metrics[start : start + each], label))
    console.print()
    if results.table.shows == "runs":
        console.print(f"Means (gain over {results.table.base}). {SIGNS}")
    elif results.how:
        console.print(results.how)
    for line in _below(results, tested):
        console.print(line)
    return "\n".join(line.rstrip() for line in target.getvalue().splitlines())


def _grid(results: Results, metrics: Sequence[str], width: int) -> Grid:
    """One block of metrics, a row of the table per line."""
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    grid.add_column("", max_width=width)
    for metric in metrics:
        grid.add_column(heading(metric), no_wrap=True)
    cells = {(row.model, row.metric): row for row in results.summary.itertuples()}
    for name, label in results.labels.items():
        found = [cells.get((name, metric)) for metric in metrics]
        grid.add_row(label, *map(_cell, found))
        paper = [results.published.get((name, metric)) for metric in metrics]
        if any(value is not None for value in paper):
            texts = zip(metrics, paper, strict=True)
            grid.add_row(
                f"  {results.paper}",
                *("" if value is None else score_text(metric, value) for metric, value in texts),
            )
    return grid


def _cell(row: Any) -> str:
    if row is None:
        return "not run"
    mean = score_text(row.metric, row.mean)
    if math.isnan(row.gain):
        return mean
    return f"{mean} ({gain_text(row.metric, row.gain)}) {direction(row)[0]}".rstrip()


def _below(results: Results, tested: Sequence[Tested]) -> Iterator[str]:
    """What moved, and why rows have no numbers."""
    if tested:
        yield "\nWhat moved:"
    for each in tested:
        yield f"  {each.claim.says}: {summary_of(each, results.table.columns)}"
    if results.problems:
        yield "\nRows without numbers, or with a part of them:"
    for name, why in results.problems.items():
        yield f"  {results.labels[name]}: {' '.join(why.split())}"

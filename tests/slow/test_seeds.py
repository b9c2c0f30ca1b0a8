"""The demo over several seeds: what `benchmarks/seeds.py` prints, on runs of a few steps."""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

import pytest

from jobs import REPOSITORY, SMALL, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_means_and_spreads_are_those_of_the_runs_tables(tmp_path: Path) -> None:
    script = str(REPOSITORY / "benchmarks" / "seeds.py")
    command = (sys.executable, script, str(tmp_path), *SMALL[1:], "--seeds", "3", "4")
    with running(*command, folder=tmp_path / "logs") as seeds:
        assert seeds.wait(800) == 0, seeds.output
    by_seed: list[dict[tuple[str, str], float]] = []
    for seed in (3, 4):
        table = tmp_path / f"seed-{seed}" / "evaluation" / "table.csv"
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        by_seed.append({(row["model"], row["metric"]): float(row["mean"]) for row in rows})
    lines = seeds.output.strip().splitlines()[-5:]
    assert lines[0].startswith("| 2 seeds | PickScore | Texture detail | Colorfulness | ")
    for line, model in zip(lines[2:], ("base", "stage1", "both"), strict=True):
        shown = line.split(" | ")[1]
        scores = [table[model, "pickscore"] for table in by_seed]
        assert shown == f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}"

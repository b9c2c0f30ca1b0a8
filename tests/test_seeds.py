"""The table over several seeds that `benchmarks/seeds.py` prints."""

from __future__ import annotations

import runpy
import statistics
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "seeds.py"


def test_rows_are_mean_and_spread_over_seeds() -> None:
    means = {("base", "pickscore"): [20.0, 20.5, 20.4], ("both", "pickscore"): [22.0, 21.0, 23.0]}
    means |= {("base", "cmmd"): [1.5, 1.25, 1.0], ("both", "cmmd"): [0.5, 0.5, 0.5]}
    rows = [
        {"training_seed": seed, "model": model, "metric": metric, "mean": mean}
        for (model, metric), values in means.items()
        for seed, mean in enumerate(values)
    ]
    lines = runpy.run_path(str(SCRIPT))["markdown"](pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| 3 seeds | PickScore | CMMD ↓ |"

    def cell(model: str, metric: str) -> str:
        values = means[model, metric]
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"

    assert lines[2] == f"| base | {cell('base', 'pickscore')} | {cell('base', 'cmmd')} |"
    both = f"| {cell('both', 'pickscore')} | {cell('both', 'cmmd')} |"
    assert lines[3] == f"| stage 1 + stage 2 {both}"

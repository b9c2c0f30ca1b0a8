"""The demo over several seeds: the four rows of the paper's Table 3, mean and spread.

Each seed draws its own noise for twins, training and order of pairs; prompts and the seeds of the
evaluation's images stay. Runs are kept in the storage folder and resumed.

    python benchmarks/seeds.py STORAGE [key=value ...] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from raypref.evaluate.tables import metric_label, model_label, score_text

JOB = Path(__file__).parent.parent / "jobs" / "full_pipeline.py"


def results(storage: Path, seed: int, settings: list[str]) -> pd.DataFrame:
    """One seed's table; the run is made when it is not there."""
    name = f"seed-{seed}"
    command = ["tiny", f"seed={seed}", f"run={name}", f"storage={storage}", *settings]
    subprocess.run([sys.executable, str(JOB), *command], check=True)
    return pd.read_csv(storage / name / "evaluation" / "table.csv").assign(training_seed=seed)


def markdown(tables: pd.DataFrame) -> str:
    """A row a model, a column a metric, each `mean ± standard deviation` over seeds."""
    metrics, models = tables["metric"].unique(), tables["model"].unique()
    lines = [
        f"| {tables['training_seed'].nunique()} seeds | {' | '.join(map(metric_label, metrics))} |",
        "| --- " * (len(metrics) + 1) + "|",
    ]
    for model in models:
        cells = []
        for metric in metrics:
            means = tables.query("model == @model and metric == @metric")["mean"]
            spread = score_text(metric, means.std())
            cells.append(f"{score_text(metric, means.mean())} ± {spread}")
        lines.append(f"| {model_label(model)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the seeds one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("storage", type=Path, help="folder of the runs")
    parser.add_argument("settings", nargs="*", help="key=value, as for the jobs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    storage = arguments.storage.absolute()
    tables = pd.concat([results(storage, seed, arguments.settings) for seed in arguments.seeds])
    print(f"\n{markdown(tables)}")


if __name__ == "__main__":
    main()

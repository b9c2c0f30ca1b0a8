"""The table of docs/extending.md: a TOML file outside the package, planned and shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from worked_examples import example

from raypref.ablate import claims, results
from raypref.ablate.driver import plan_text, tables_of
from raypref.ablate.plan import AblateConfig, load_config, planned_rows
from raypref.ablate.table import Table
from raypref.core.config import results_of
from raypref.evaluate import statistics


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Table]:
    """The table as a command reads it."""
    file = tmp_path / "margins.toml"
    file.write_text(example("Add a table", "toml"), encoding="utf-8")
    return tables_of(str(file))


@pytest.fixture
def tiny(tmp_path: Path) -> AblateConfig:
    return load_config("tiny", [f"storage={tmp_path / 'runs'}"])


def test_its_rows_are_planned(table: dict[str, Table], tiny: AblateConfig) -> None:
    base, as_it_is, without = planned_rows("margins", table["margins"], tiny)
    assert base.model == "base" and as_it_is.model == without.model == "stage2"
    assert as_it_is.config is not None and without.config is not None
    ours, theirs = results_of(as_it_is.config.train), results_of(without.config.train)
    assert ours == results_of(tiny.train)
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ == {"stage1.margin"} and theirs["stage1.margin"] == 0.0 > ours["stage1.margin"]
    assert "distinct models to train: 4," in plan_text(table, tiny)


def test_its_results_are_shown_and_its_claim_is_tested(table: dict[str, Table]) -> None:
    own = table["margins"]
    names = [row.name for row in own.all_rows()]
    of_prompt = np.random.default_rng(0).normal(0, 5, 50)
    scores = pd.DataFrame(
        [
            {
                "prompt": "p",
                "prompt_id": number,
                "seed": "0/1",
                "training_seed": 0,
                "model": name,
                "metric": metric,
                "score": of_prompt[number] + gain,
            }
            for name, gain in zip(names, (0.0, 2.0, 1.5), strict=True)
            for metric in ("colorfulness", "pickscore")
            for number in range(50)
        ]
    )
    summary = statistics.summarise(scores, base="base", resamples=50)
    summary = statistics.arranged(summary, first=own.columns)
    found = results.Results(own, scores, summary, {}, {name: name for name in names}, {})
    lines = results.table_markdown(found).splitlines()
    assert lines[0] == "## Does the margin matter?"
    assert lines[2] == "| model | PickScore ↑ | Colorfulness ↑ |"
    [line] = [line for line in lines if line.startswith("| no margin |")]
    assert "(+1.50)" in line
    moved = claims.what_moved(found, claims.tested(found, resamples=50))
    assert "The margin helps: confirmed by 1 of 1 metrics" in moved

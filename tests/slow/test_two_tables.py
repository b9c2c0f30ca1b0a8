"""Every table and figure of the paper in one command: each distinct model is trained once."""

import re
import tomllib
from pathlib import Path

import pytest

from jobs import SMALL, job
from raypref.ablate import table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SETTINGS = (
    *(word for word in SMALL if not word.startswith("train=")),
    *("sft.steps=2", "sft.batch=8", "sft.resources.workers=1", "saliency.resources.workers=1"),
    *("stage1.sample_every=0", "stage2.sample_every=0", "evaluate.seeds=[1]"),
    *("metrics.distance=false", "metrics.critic=''"),
)
OF_THE_PAPER = [path for path in table.TABLES.glob("*.toml") if re.search(r"\d", path.stem)]


def test_all_tables_from_one_plan(tmp_path: Path) -> None:
    code, output = job(
        *("ablate", "all", *SETTINGS, f"storage={tmp_path}"), folder=tmp_path / "log", patience=3000
    )
    assert code == 0, output

    planned = re.search(r"distinct models to train: (\d+), of which done: 0", output)
    assert planned
    made = [
        path
        for path in (tmp_path / "steps").glob("*/manifest.json")
        if path.parent.name.startswith(("stage", "sft"))
    ]
    assert len(made) == int(planned[1])

    assert len(OF_THE_PAPER) == 10
    for path in OF_THE_PAPER:
        content = tomllib.loads(path.read_text())
        text = (tmp_path / "ablations" / path.stem / "table.md").read_text()
        assert f"## {content['title']}" in text and text.strip() in output
        rows = [line for line in text.splitlines() if re.search(r"\| \S*\d+\.\d\d|not given", line)]
        of_family = [row for row in content["rows"] if "sd15" in row.get("families", ["sd15"])]
        assert len(rows) == len(of_family), text

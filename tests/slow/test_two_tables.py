"""Tables of the paper made in one go, as `all` makes them: each distinct model is trained once."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from jobs import SMALL, running
from raypref.ablate import table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# They share the base and ours. What `all` shares is counted by tests/test_ablate.py.
TABLES = ("table1a", "table2")
MAKE = f"""
import sys
from raypref.ablate.driver import make
from raypref.ablate.plan import load_config
from raypref.ablate.table import read
made = make({{name: read(name) for name in {TABLES}}}, load_config("tiny", sys.argv[1:]))
print(*(each.text for each in made))
"""
SETTINGS = (
    *(word for word in SMALL[1:] if not word.startswith("train=")),
    *("sft.steps=2", "sft.batch=8", "sft.resources.workers=1"),
    *("stage1.sample_every=0", "stage2.sample_every=0", "evaluate.seeds=[1]"),
    *("metrics.distance=false", "metrics.critic=''"),
)


def test_two_tables_from_one_plan(tmp_path: Path) -> None:
    command = (sys.executable, "-c", MAKE, *SETTINGS, f"storage={tmp_path}")
    with running(*command, folder=tmp_path / "log") as making:
        assert making.wait(1500) == 0, making.output
        output = making.output

    made = [
        path.parent.name.rpartition("-")[0]
        for path in (tmp_path / "steps").glob("*/manifest.json")
        if path.parent.name.startswith(("stage", "sft"))
    ]
    assert sorted(made) == ["sft", "stage1", "stage2"]

    for name in TABLES:
        content = tomllib.loads((table.TABLES / f"{name}.toml").read_text())
        text = (tmp_path / "ablations" / name / "table.md").read_text()
        assert f"## {content['title']}" in text and text.strip() in output
        rows = [line for line in text.splitlines() if re.search(r"\| \S*\d+\.\d\d|not given", line)]
        of_family = [row for row in content["rows"] if "sd15" in row.get("families", ["sd15"])]
        assert len(rows) == len(of_family), text

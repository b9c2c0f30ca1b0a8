"""Every file of examples/ runs as it is, one after another in an empty folder, without Ray."""

import json
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from in_process import without_ray
from PIL import Image

from raypref.rewards.registry import REWARDS

EXAMPLES = Path(__file__).parents[1] / "examples"
ORDER = ("own_photographs.py", "own_reward.py", "walkthrough.ipynb", "use_lora.py")


def lines(file: str) -> int:
    """Of a script, or of a notebook's code."""
    text = (EXAMPLES / file).read_text()
    if file.endswith(".py"):
        return len(text.splitlines())
    return sum(len(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code")


def test_examples_are_short_and_all_are_run():
    found = {p.name for p in EXAMPLES.iterdir() if p.suffix in (".py", ".ipynb")}
    assert found == {*ORDER}
    assert all(lines(file) <= 60 for file in ORDER), {file: lines(file) for file in ORDER}
    assert all(f"examples/{file}" in (EXAMPLES / "README.md").read_text() for file in ORDER)


def run(file: Path) -> None:
    """A script, or the cells of a notebook in their order."""
    if file.suffix == ".py":
        runpy.run_path(str(file), run_name="__main__")
        return
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads(file.read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(file), "exec"), names)


@pytest.mark.slow
def test_every_example_runs_as_it_is(tmp_path, monkeypatch, capsys, caplog):
    without_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example"])
    plt.switch_backend("Agg")
    with caplog.at_level("INFO"), patch.dict(REWARDS):
        for name in ORDER:
            run(EXAMPLES / name)
    plt.close("all")
    said = capsys.readouterr().out
    folder = tmp_path / "runs" / "my-photos"
    assert pd.read_parquet(next((folder / "pairs").glob("*.parquet")))["prompt"].str.len().min() > 0
    assert "8 pairs: " in said and (folder / "pairs.png").is_file()
    assert "Sharpness prefers the photograph in " in said
    assert len(pd.read_parquet(folder / "stage1" / "metrics.parquet")) == 12
    # The notebook found the pairs of the script.
    assert len([line for line in caplog.messages if line.startswith("pairs: done")]) == 1
    sheet = np.asarray(Image.open(Path(folder, "stage1", "before-and-after.png")), np.float32)
    above, below = np.split(sheet, 2)
    assert np.abs(above - below).mean() > 0.5  # the LoRA does something

"""Every file of examples/ runs as it is, one after another in an empty folder, with one Ray."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jobs import REPOSITORY, running

EXAMPLES = REPOSITORY / "examples"
ORDER = ("own_photographs.py", "own_reward.py", "walkthrough.ipynb", "use_lora.py")
# In one process: what costs is to start Ray and to import torch. Where nbclient is not installed,
# the notebook's cells are run in their order.
RUNNER = """
import json, os, runpy, sys
folder, nbclient, *files = sys.argv[1:]
sys.argv[1:] = []
os.chdir(folder)
for file in files:
    print("example:", file, flush=True)
    if file.endswith(".py"):
        runpy.run_path(file, run_name="__main__")
    elif nbclient == "True":
        import nbclient, nbformat
        here = {"metadata": {"path": "."}}
        nbclient.NotebookClient(nbformat.read(file, 4), resources=here).execute()
    else:
        cells = json.load(open(file))["cells"]
        names = {"__name__": "__main__"}
        for cell in cells:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), file, "exec"), names)
"""


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_example_runs_as_it_is(tmp_path):
    notebooks = str(all(map(find_spec, ("nbclient", "ipykernel"))))
    files = [str(EXAMPLES / name) for name in ORDER]
    command = (sys.executable, "-c", RUNNER, str(tmp_path), notebooks, *files)
    env = {"PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "Agg"}
    with running(*command, folder=tmp_path / "log", env=env) as job:
        assert job.wait() == 0, job.output
        said = job.output
    run = tmp_path / "runs" / "my-photos"
    assert pd.read_parquet(next((run / "pairs").glob("*.parquet")))["prompt"].str.len().min() > 0
    assert "8 pairs: " in said and (run / "pairs.png").is_file()
    assert "Sharpness prefers the photograph in " in said
    assert len(pd.read_parquet(run / "stage1" / "metrics.parquet")) == 12
    assert said.count("pairs: done") == 1  # the notebook found the pairs of the script
    sheet = np.asarray(Image.open(Path(run, "stage1", "before-and-after.png")), np.float32)
    above, below = np.split(sheet, 2)
    assert np.abs(above - below).mean() > 0.5  # the LoRA does something

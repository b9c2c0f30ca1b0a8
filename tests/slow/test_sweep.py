"""Tables from the command line: each distinct model once, killed and gone on, failed rows shown."""

import csv
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import mlflow
import pandas as pd
import pytest

from jobs import REPOSITORY, TOKEN, job, node, running, start

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]

# Every step, at the cost of starting its processes.
SMALL = (
    "tiny",
    "source.limit=40",
    "perturb.steps=4",
    "select.top_k=8",
    "pickscore.resources.workers=1",
    "saliency.resources.workers=1",
    "cache.resources.workers=1",
    "train.stage1.steps=4",
    "train.stage1.batch=8",
    "train.stage1.resources.workers=1",
    "train.stage2.steps=4",
    "train.stage2.batch=8",
    "train.stage2.checkpoint_every=1",
    "train.stage2.resources.workers=1",
    "evaluate.limit=3",
    "evaluate.seeds=[1]",
    "evaluate.steps=2",
    "evaluate.resources.workers=1",
    "metrics.distance=false",
    "metrics.critic=''",
)
# Two trainings for three models, and a row that cannot be.
STAGES = """
title = "Stages"

[[rows]]
name = "stage1"
label = "stage 1"
model = "stage1"

[[rows]]
name = "stage2"
label = "stage 1 + stage 2"

[[rows]]
name = "impossible"
set = { "train.stage2.beta" = -1 }
"""


def complete(storage: Path, pattern: str) -> dict[str, float]:
    """Finished ledgers among the shared ones, and when they were finished."""
    found = (storage / "steps").glob(f"{pattern}/.manifest.json")
    return {str(path.parent): path.stat().st_mtime for path in found}


def numbers(folder: Path) -> list[list[str]]:
    return list(csv.reader((folder / "table.csv").open()))


def on_two_nodes(*arguments: str, folder: Path) -> tuple[int, str]:
    """A table on a cluster of two nodes with a core each; exit status and output."""
    with (
        node(folder, "--head", cores=1) as (head, ports),
        node(folder, f"--address=127.0.0.1:{ports['port']}", cores=1, ip="127.0.0.2"),
    ):
        env = {"PYTHONPATH": str(REPOSITORY), "RAY_TMPDIR": str(head.scratch), **TOKEN}
        env["RAY_ADDRESS"] = f"127.0.0.1:{ports['port']}"
        command = (sys.executable, "jobs/ablate.py", *arguments)
        with running(*command, folder=folder, env=env) as table_job:
            return table_job.wait(), table_job.output


class Resumed(NamedTuple):
    """A table that was killed after the first training, and then run to its end."""

    storage: Path
    command: tuple[str, ...]  # the table and its settings
    output: str  # of the second job, which ended with status 1: a row failed
    before: dict[str, float]  # ledgers that were complete at the kill, and since when


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    folder = tmp_path_factory.mktemp("table")
    own, storage = folder / "stages.toml", folder / "killed"
    own.write_text(STAGES)
    command = (str(own), *SMALL)
    here = ("ablate", *command, f"storage={storage}", "ablate.at_once=1")
    with start(*here, folder=folder / "log") as driver:
        driver.wait_for(lambda: len(complete(storage, "stage*")) == 1, every=0.1)
        before = complete(storage, "**")
        driver.kill_driver()
    status, output = job(*here, folder=folder / "log")
    assert status == 1, output
    return Resumed(storage, command, output, before)


def with_what_came_before(table: Resumed, storage: Path, *, trained: bool) -> Path:
    """A storage with what the table had before its kill: the pairs, and the training if wanted."""
    for ledger in map(Path, table.before):
        if trained or not ledger.name.startswith("stage"):
            shutil.copytree(ledger, storage / ledger.relative_to(table.storage))
    return storage


def test_a_table_that_is_killed_goes_on_and_comes_out_the_same(resumed: Resumed, tmp_path: Path):
    killed, command, output, before = resumed
    assert before.items() <= complete(killed, "**").items()  # nothing was made twice
    assert "distinct models to train: 2" in output
    assert len(complete(killed, "stage*")) == 2
    assert "impossible: train.stage2.beta=-1: input should be greater than 0" in output
    for label in ("stage 1", "stage 1 + stage 2"):
        assert re.search(rf"^{re.escape(label)} +-?\d", output, re.MULTILINE), output
    page = re.search(r"^Page: (.*)$", output, re.MULTILINE)
    assert page and "stage 1 + stage 2" in Path(page[1]).read_text()
    _check_tracking(killed)

    # Undisturbed, on two nodes that run a row each at once: each model is trained once.
    straight = with_what_came_before(resumed, tmp_path / "straight", trained=False)
    status, output = on_two_nodes(*command, f"storage={straight}", folder=tmp_path / "log")
    assert status == 1, output  # the same row failed
    assert len(complete(straight, "stage*")) == 2
    folder = Path("ablations") / "stages"
    assert numbers(killed / folder) == numbers(straight / folder)

    # Once more: everything is found, no Ray is started.
    again, said = job("ablate", *command, f"storage={killed}", folder=tmp_path / "log")
    assert again == 1 and "starting Ray" not in said
    assert numbers(killed / folder) == numbers(straight / folder)


def _check_tracking(storage: Path) -> None:
    """One run per table, below it one per row, with curves, numbers and LoRA."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "raypref"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "stages"]
    assert "table.md" in {a.path for a in client.list_artifacts(parent.info.run_id)}
    children = {
        run.info.run_name: run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
        and run.info.status == "FINISHED"
    }
    assert set(children) == {"stage1-seed0", "stage2-seed0"}
    both = children["stage2-seed0"].info.run_id
    steps = [metric.step for metric in client.get_metric_history(both, "stage1/loss")]
    assert sorted(set(steps)) == [1, 2, 3, 4]  # though another row trained it
    assert "eval/stage2/pickscore" in children["stage2-seed0"].data.metrics
    assert client.list_artifacts(both, "stage2")


def test_the_sweep_in_the_docs_works_as_written(resumed: Resumed, tmp_path: Path):
    text = (REPOSITORY / "docs/ablations.md").read_text()
    sweep = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    command = re.search(r"raypref (ablate) (beta-and-pairs\.toml) tiny\n", text)
    assert command
    # As written but for its size.
    own = tmp_path / command[2]
    for large, small in (("samples = 12", "samples = 1"), ("rungs = 3", "rungs = 2")):
        sweep = sweep.replace(large, small)
    own.write_text(sweep.replace("[48, 64, 96]", "[8]"))
    runs = with_what_came_before(resumed, tmp_path / "runs", trained=True)
    arguments = (command[1], str(own), *SMALL, f"storage={runs}", "ablate.at_once=1")
    command_line = (sys.executable, "-m", "raypref", *arguments)
    with running(*command_line, folder=tmp_path / "log") as sweeping:
        assert sweeping.wait() == 0, sweeping.output
        _check_rungs(runs)


def _check_rungs(storage: Path) -> None:
    (table,) = storage.glob("ablations/*/table.md")
    reached = re.findall(
        r"^\| train\.stage2\.beta=\S+ select\.top_k=\d+, train\.stage2\.steps=(\d+) \|.*\[",
        table.read_text(),
        re.M,
    )
    assert reached == ["4"]  # it went the whole way, over 2
    # A longer training went on from the shorter one: it has its first steps, to the microsecond.
    told = [pd.read_parquet(path) for path in (storage / "steps").glob("stage2-*/metrics.parquet")]
    seconds = {tuple(frame.sort_values("step")["seconds"]) for frame in told}
    whole = [each for each in seconds if len(each) == 4]
    assert whole
    assert all(each[:2] in seconds for each in whole)

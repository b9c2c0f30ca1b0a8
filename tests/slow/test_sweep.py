"""Tables from the command line: each distinct model once, killed and resumed, failed rows shown."""

import csv
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from in_process import job_here

from jobs import REPOSITORY, TOKEN, node, running, start
from raypref.ablate import sweep
from raypref.ablate.plan import AblateConfig, PlannedRow, open_run, step_names
from raypref.cli import main
from raypref.run.execute import carry_out

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


@contextmanager
def two_nodes(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster of two nodes with a core each: what a job needs to know of it."""
    with (
        node(folder, "--head", cores=1) as (head, ports),
        node(folder, f"--address=127.0.0.1:{ports['port']}", cores=1, ip="127.0.0.2"),
    ):
        env = {"PYTHONPATH": str(REPOSITORY), "RAY_TMPDIR": str(head.scratch), **TOKEN}
        yield {**env, "RAY_ADDRESS": f"127.0.0.1:{ports['port']}"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The table and its settings."""
    own = tmp_path_factory.mktemp("table") / "stages.toml"
    own.write_text(STAGES)
    return (str(own), *SMALL)


def rows_here(
    rows: Sequence[PlannedRow], config: AblateConfig, *, parents: Mapping[str, str | None]
) -> dict[tuple[str, str], str]:
    """As `run_rows`, one after another in this process."""
    for row in rows:
        assert row.config is not None
        run = open_run(row.config, row.model)
        only, parent = step_names(run, row.model), parents[row.table]
        carry_out(run, only=only, parent_run_id=parent, pages=False)
    return {}


@pytest.fixture(scope="module")
def straight(command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a table that nobody disturbed: one process made all, without Ray."""
    storage = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_rows", rows_here)
        status, said = job_here("ablate", *command, f"storage={storage}")
    assert status == 1, said  # a row failed
    return storage


def copy_without(steps: Sequence[str], storage: Path, target: Path) -> Path:
    """A copy of a storage, without some steps."""
    ignored = shutil.ignore_patterns(*(f"{step}*" for step in steps))
    shutil.copytree(storage / "steps", target / "steps", ignore=ignored)
    return target


def test_a_killed_table_is_resumed_and_comes_out_the_same(
    command: tuple[str, ...], straight: Path, tmp_path: Path
):
    killed = copy_without(["stage", "evaluation"], straight, tmp_path / "killed")
    with start("ablate", *command, f"storage={killed}", folder=tmp_path / "log") as driver:
        driver.wait_for(lambda: any((killed / "steps").glob("stage1-*/.started.json")), every=0.1)
        driver.kill_driver()
    before = complete(killed, "**")
    assert not complete(killed, "stage*"), "the kill came too late to test anything"

    # Resumed on two nodes, a row on each: both need stage 1, and one trains it.
    table = (sys.executable, "jobs/ablate.py", *command, f"storage={killed}")
    with (
        two_nodes(tmp_path / "nodes") as env,
        running(*table, folder=tmp_path / "log", env=env) as again,
    ):
        assert again.wait() == 1, again.output  # a row failed
        output = again.output
    assert before.items() <= complete(killed, "**").items()  # nothing was made twice
    assert "distinct models to train: 2" in output
    assert len(complete(killed, "stage*")) == 2
    assert "impossible: train.stage2.beta=-1: input should be greater than 0" in output
    for label in ("stage 1", "stage 1 + stage 2"):
        assert re.search(rf"^{re.escape(label)} +-?\d", output, re.MULTILINE), output
    page = re.search(r"^Page: (.*)$", output, re.MULTILINE)
    assert page and "stage 1 + stage 2" in Path(page[1]).read_text()
    _check_tracking(killed)
    folder = Path("ablations") / "stages"
    assert numbers(killed / folder) == numbers(straight / folder)


def test_a_complete_table_starts_no_ray(
    command: tuple[str, ...], straight: Path, capsys: pytest.CaptureFixture[str]
):
    folder = straight / "ablations" / "stages"
    before = numbers(folder)
    again = main("ablate", (*command, f"storage={straight}"), program="raypref ablate")
    assert again == 1 and "starting Ray" not in capsys.readouterr().out
    assert numbers(folder) == before


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


def test_the_sweep_in_the_docs_works_as_written(straight: Path, tmp_path: Path):
    text = (REPOSITORY / "docs/ablations.md").read_text()
    written = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[1]
    command = re.search(r"raypref (ablate) (beta-and-pairs\.toml) tiny\n", text)
    assert command
    # As written but for its size.
    own = tmp_path / command[2]
    for large, small in (("samples = 12", "samples = 1"), ("rungs = 3", "rungs = 2")):
        written = written.replace(large, small)
    own.write_text(written.replace("[48, 64, 96]", "[8]"))
    runs = copy_without(["stage2"], straight, tmp_path / "runs")
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

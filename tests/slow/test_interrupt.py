"""Ctrl-C at any moment: one line, exit 130, and the same command resumes; two jobs never share."""

import json
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs import RECORDED, WHOLE, Job, job, start
from raypref.core.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Where the run is when it is interrupted: what its output says then. (In an evaluation rows stream
# as in a curation.)
MOMENTS: dict[str, Callable[[Job], bool]] = {
    "curation": lambda job: "twins: " in job.output,
    "the first steps": lambda job: "stage1: 2/" in job.output,
}


def test_an_interrupted_run_ends_with_one_line_and_is_resumed(
    full: tuple[Path, str], tmp_path: Path
) -> None:
    command = ("full_pipeline", *WHOLE, f"storage={tmp_path}")
    for moment, reached in MOMENTS.items():
        with start(*command, folder=tmp_path) as running:
            running.wait_for(lambda reached=reached, running=running: reached(running))
            running.process.send_signal(signal.SIGINT)
            assert running.wait() == 130, f"{moment}:\n{running.output}"
            after = running.output.splitlines()
        assert after[-1] == "Interrupted. Run the same command again to resume.", moment
        assert not any("Traceback" in line for line in after), moment
    # The second went on where the first was interrupted: its pairs are those of a quiet run. (Of
    # resumed trainings and evaluations: test_kill.py, test_evaluate.py.)
    ours, theirs = (
        [row for name in ledger.parts() for row in ledger.part(name).to_pylist()]
        for ledger in (Ledger(str(run / "pairs"), {}) for run in (tmp_path / "run", full[0]))
    )
    assert ours == theirs


def test_first_runs_side_by_side_all_end_well_and_none_shares_a_folder(tmp_path: Path) -> None:
    """Two begin in one new storage at once, with one MLflow database; a third is refused."""
    pairs = ("curate", *RECORDED, "source.limit=8", "color.enabled=false", f"storage={tmp_path}")
    with ExitStack() as stack:
        first = [
            stack.enter_context(start(*pairs, f"run=r{number}", folder=tmp_path / str(number)))
            for number in range(2)
        ]
        first[0].wait_for((tmp_path / "r0" / "job.lock").exists)
        code, output = job(*pairs, "run=r0", folder=tmp_path / "third")
        assert (code, "in use by another job" in output) == (2, True), output
        for number, running in enumerate(first):
            assert running.wait() == 0, running.output
            record = json.loads((tmp_path / f"r{number}" / "run.json").read_text())
            assert record["mlflow_run_id"], running.output

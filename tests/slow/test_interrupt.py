"""Ctrl-C at any moment: one line, exit 130, and the same command resumes.

Two jobs at once: tests/test_alone.py, tests/test_tracking.py.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import WHOLE, Job, start
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

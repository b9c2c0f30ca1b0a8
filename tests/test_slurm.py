"""`clusters/slurm/raypref.sbatch`, with stand-ins for Slurm, Ray and the job."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "clusters" / "slurm" / "raypref.sbatch"

STAND_INS = {
    # Drops its own options and is then the command.
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": '[[ $1 == show ]] && printf "n1\\nn2\\n" || echo "$@" > "$NOTES/requeued"',
    "ray": """
        [[ $1 == start ]] || exit 0
        echo "$BASHPID $RAY_AUTH_TOKEN $*" >> "$NOTES/nodes"
        exec sleep 600""",
    "python": """
        until [[ $(wc -l < "$NOTES/nodes") == 2 ]]; do sleep 0.02; done
        echo "$RAY_ADDRESS $*" > "$NOTES/driver"
        [[ $STATUS ]] && exit "$STATUS"
        exec sleep 600""",
}


class Allocation:
    """The script in a made-up allocation of two nodes."""

    def __init__(self, folder: Path, *, status: str, restarts: int = 0) -> None:
        self.notes = folder / "notes"
        self.notes.mkdir()
        bin_folder = folder / ".venv" / "bin"
        bin_folder.mkdir(parents=True)
        for name, body in STAND_INS.items():
            (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
            (bin_folder / name).chmod(0o755)
        own = {
            "PROJECT": str(folder),
            "NOTES": str(self.notes),
            "STATUS": status,
            "SLURM_JOB_ID": str(10**9 + os.getpid()),
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_GPUS_PER_NODE": "1",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        self.process = subprocess.Popen(
            ["bash", SLURM], env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def note(self, name: str) -> str:
        """What a stand-in wrote, once it has."""
        limit = time.monotonic() + 20
        while not (path := self.notes / name).exists() or not path.read_text():
            assert time.monotonic() < limit, f"no {name}"
            time.sleep(0.02)
        return path.read_text()

    def end(self) -> int:
        """The exit status; by then nothing that was started may be left."""
        output, _ = self.process.communicate(timeout=20)
        for line in self.note("nodes").splitlines():
            assert not Path(f"/proc/{line.split()[0]}").exists(), f"left behind: {line}"
        assert self.token() not in output.decode()
        return self.process.returncode

    def token(self) -> str:
        return self.note("nodes").split()[1]


def test_slurm_starts_a_head_and_workers_and_hands_on_the_exit_status(tmp_path: Path) -> None:
    job = Allocation(tmp_path, status="2")
    assert job.end() == 2
    head, worker = sorted(job.note("nodes").splitlines(), key=lambda line: "--address" in line)
    address, script, *_ = job.note("driver").split()
    assert "--head" in head and f"--address={address}" in worker
    assert re.fullmatch(r"[0-9a-f]{64}", job.token())
    assert job.token() == worker.split()[1] and job.token() not in " ".join(head.split()[2:])
    assert (ROOT / script).is_file()


@pytest.mark.parametrize(
    ("sign", "restarts", "status", "requeued"),
    [
        (signal.SIGUSR1, 0, 0, True),  # time is nearly up
        (signal.SIGUSR1, 20, 1, False),  # too often
        (signal.SIGTERM, 0, 143, False),  # scancel, or preemption: Slurm queues it again itself
    ],
)
def test_slurm_ends_its_run_on_a_signal(
    tmp_path: Path, sign: signal.Signals, restarts: int, status: int, requeued: bool
) -> None:
    job = Allocation(tmp_path, status="", restarts=restarts)
    job.note("driver")
    job.process.send_signal(sign)
    assert job.end() == status
    assert (job.notes / "requeued").exists() is requeued

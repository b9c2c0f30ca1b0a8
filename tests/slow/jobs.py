"""Running the jobs as a user does: each a process of its own, with nothing of it left behind.

Every job gets a mark in its environment, which all it starts inherits (Ray's servers, workers,
agents). So a test ends exactly its own processes, and never those of another Ray on the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
RAY = str(BIN / "ray")
MARK = "RAYPREF_TEST_JOB"
PATIENCE = 1500.0  # seconds that a job may take on a slow and busy machine; most take a minute

# Ray asks for a token as soon as any `ray.init()` left one in ~/.ray, but `ray job submit` sends it
# only in this mode.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}

# A run that goes through every step and whose only cost is the start of its processes. A
# record in MLflow costs a tenth more: only the run of conftest.py has one.
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
    "train.stage1.sample_every=2",
    "train.stage1.resources.workers=1",
    "train.stage2.steps=2",
    "train.stage2.batch=8",
    "train.stage2.resources.workers=1",
    'trainings=["stage1", "stage2"]',
    "tracking.uri=none",
    "evaluate.limit=2",
    "evaluate.steps=3",
    "evaluate.resources.workers=1",
)

# The same, long enough to be killed in the middle; how much is made does not depend on time.
BLOCK, STEPS, EVERY = 4, 24, 4
WHOLE = (
    *SMALL,
    "source.limit=32",
    "curate.exhaustive=true",
    f"stream.block_rows={BLOCK}",
    "stream.progress_seconds=0",
    f"train.stage1.steps={STEPS}",
    f"train.stage1.checkpoint_every={EVERY}",
    f"train.stage1.sample_every={STEPS // 2}",
)
# On the pairs of `copy_of`: as short as a training can be.
SHORT = (*WHOLE, "train.stage1.steps=4", "train.stage1.sample_every=2")
RECORDED = (*WHOLE, "tracking.uri=''")  # in MLflow beside the runs


@dataclass
class Job:
    """A started process and what it says."""

    process: subprocess.Popen[bytes]
    log: Path
    mark: str
    scratch: Path  # Ray's own files

    @property
    def output(self) -> str:
        """Stdout and stderr so far."""
        return self.log.read_text()

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status; fails with the job's output when it takes too long."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {timeout:.0f} s:\n{self.output}") from None

    def wait_for(
        self, happened: Callable[[], bool], timeout: float = PATIENCE, *, every: float = 0.02
    ) -> None:
        """Wait until something is so, looked at `every` so many seconds; fails when the job ends.

        Where a look costs CPU time, the job that is waited for loses it.
        """
        limit = time.monotonic() + timeout
        while not happened():
            assert self.process.poll() is None, f"ended too early:\n{self.output}"
            assert time.monotonic() < limit, f"did not happen in {timeout:.0f} s:\n{self.output}"
            time.sleep(every)

    def workers(self, title: str) -> list[int]:
        """Ids of its processes whose title contains a text."""
        return processes(self.mark, title)

    def kill_driver(self, *, cluster: Job | None = None) -> None:
        """`kill -9` of the driver alone; its Ray must notice by itself and write no more.

        Args:
            cluster: the node whose Ray it used; None for a driver that started its own.
        """
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        # Ray's agents may stay for half a minute; they compute and write nothing.
        limit = time.monotonic() + PATIENCE / 5
        while (
            cluster.workers("MapWorker")
            if cluster
            else any("Agent" not in process_file(pid, "cmdline") for pid in marked(self.mark))
        ):
            assert time.monotonic() < limit, "processes of the killed job went on"
            time.sleep(0.1)


@contextmanager
def running(
    *command: str, folder: Path, env: dict[str, str] | None = None, scratch: Path | None = None
) -> Iterator[Job]:
    """Start a command in the repository; at the end nothing that it started is left.

    Args:
        *command: what to run.
        folder: where its output is kept.
        env: variables to add.
        scratch: that of the node whose Ray it uses; None gives it one of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex
    log = folder / f"{mark[:8]}.log"
    # Ray's sockets need a short path.
    own = scratch or Path(tempfile.mkdtemp(prefix="rp", dir="/tmp"))
    defaults = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    defaults["RAY_raylet_start_wait_time_s"] = "300"  # by default a driver waits 30 s for its node
    inherited = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**inherited, **defaults, MARK: mark, "RAY_TMPDIR": str(own), **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Job(process, log, mark, own)
    finally:
        end(mark)
        process.wait()
        if scratch is None:
            shutil.rmtree(own, ignore_errors=True)


def job(name: str, *arguments: str, folder: Path) -> tuple[int, str]:
    """Run `jobs/NAME.py` to its end; exit status and output."""
    with start(name, *arguments, folder=folder) as running_job:
        return running_job.wait(), running_job.output


def copy_of(run: Path, storage: Path) -> Path:
    """A run that has all that `run` has up to its trainings, for a job that goes on from there."""
    for name in ("curate", "photos", "rejects", "pairs", "cache"):
        shutil.copytree(run / name, storage / "run" / name)
    return storage / "run"


@contextmanager
def start(name: str, *arguments: str, folder: Path) -> Iterator[Job]:
    """Start `jobs/NAME.py`."""
    with running(sys.executable, f"jobs/{name}.py", *arguments, folder=folder) as running_job:
        yield running_job


@contextmanager
def node(
    folder: Path, *arguments: str, cores: int, ip: str = "127.0.0.1"
) -> Iterator[tuple[Job, dict[str, int]]]:
    """`ray start`: a node of a cluster, whose processes end with the test, and its ports.

    Args:
        folder: where its output is kept.
        *arguments: `--head`, or `--address` of one.
        cores: how many it says it has.
        ip: of this machine; a second node needs another than the first.
    """
    names = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"]
    if "--head" in arguments:
        names += ["port", "dashboard-port", "ray-client-server-port"]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    with ray_start(
        *(RAY, "start", *arguments, "--block", f"--num-cpus={cores}", f"--node-ip-address={ip}"),
        *(f"--{name}={port}" for name, port in ports.items()),
        folder=folder,
        env={
            "RAY_USAGE_STATS_ENABLED": "0",
            # A submitted `python` is the one on the path of whoever started the cluster.
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            **TOKEN,
        },
    ) as job:
        yield job, ports


@contextmanager
def ray_start(*command: str, folder: Path, env: dict[str, str]) -> Iterator[Job]:
    """A node that is up; started again where Ray gave up on it.

    Without its log monitor: no driver here asks for what workers print.
    """
    # A node that is not up after this time hangs: seen now and then where two start at once.
    env = {"RAY_raylet_start_wait_time_s": "60", **env}
    for attempts_left in (2, 1, 0):
        with running(*command, "--include-log-monitor=false", folder=folder, env=env) as job:
            try:
                job.wait_for(lambda: "Ray runtime started" in job.output)
            except AssertionError:
                if attempts_left and "timed out during startup" in job.output:
                    continue
                raise
            yield job
            return


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def marked(mark: str) -> list[int]:
    """Ids of the live processes with this mark."""
    needle = f"{MARK}={mark}"
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if needle in process_file(pid, "environ").split("\0")]


def processes(mark: str, title: str) -> list[int]:
    """Ids of those whose title contains a text."""
    return [pid for pid in marked(mark) if title in process_file(pid, "cmdline")]


def end(mark: str) -> None:
    """Kill every process with this mark."""
    while pids := marked(mark):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def process_file(pid: int, name: str) -> str:
    """A file of /proc; empty for a process that has ended."""
    try:
        return (Path("/proc") / str(pid) / name).read_text(errors="replace")
    except OSError:
        return ""

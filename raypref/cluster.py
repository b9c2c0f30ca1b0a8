"""The Ray cluster a job runs on: joined or started, and whether it has what is asked for."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from raypref.config import Resources
from raypref.progress import waiting

log = logging.getLogger(__name__)

# What keeps the libraries' progress bars and notes out of the workers' output.
QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
# Settings of the driver that its workers must share, on whatever node they are.
PASSED_ON = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "RAYPREF_CACHE")


def submitted() -> bool:
    """Whether this process is the driver of a job that was submitted to Ray."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def start_ray() -> None:
    """Join the cluster of `RAY_ADDRESS` or of a running head, or start one here; keep it quiet."""
    import ray
    from ray.data import DataContext

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes on Ray Data's own actors
    if not ray.is_initialized():
        where = os.environ.get("RAY_ADDRESS")
        what = f"joining the Ray cluster at {where}" if where else "starting Ray"
        log.info("%s", what)
        with waiting(what), _without_note(), _working_directory():
            try:
                _init(address=where or "auto", runtime_env={"env_vars": _worker_variables()})
            except ConnectionError:
                if where:
                    raise
                # Workers of a Ray started here inherit variables, and start quicker than with an
                # environment of their own. None of its nodes is taken away by a cloud.
                os.environ |= QUIET | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
                _init(address="local")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _init(**arguments: Any) -> None:
    """Quietly: the driver reports progress, errors come as exceptions, Ray's log files hold all."""
    import ray

    ray.init(logging_level=logging.ERROR, log_to_driver=False, **arguments)


@contextmanager
def _working_directory() -> Iterator[None]:
    """Return to the working directory: joining Ray may make that of a submitted job anew."""
    here = Path.cwd()
    yield
    if here.is_dir():
        os.chdir(here)


@contextmanager
def _without_note() -> Iterator[None]:
    """Keep Ray's line on its own log level, which it writes past Python, off the terminal."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            others = [line for line in said if b"Set ray log level from" not in line]
            os.write(2, b"".join(others))


def _worker_variables() -> dict[str, str]:
    """Environment of the workers; Ray refuses to have one set by the submitted job set again."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    taken = submitted.get("runtime_env", {}).get("env_vars", {})
    return {name: value for name, value in (QUIET | passed_on).items() if name not in taken}


def free_cores() -> float:
    """Cores that nobody holds; 0 in a cluster of several nodes, where they may lie apart."""
    import ray

    if sum(node["Alive"] for node in ray.nodes()) > 1:
        return 0.0
    return float(ray.available_resources().get("CPU", 0))


def warn_if_short(name: str, need: Resources, *, workers: int) -> None:
    """Say what cores and GPUs a cluster has not got for so many workers: Ray waits in silence.

    No error: nodes may come on demand.
    """
    import ray

    there = ray.cluster_resources()
    asked = {"cores": ("CPU", need.num_cpus), "GPUs": ("GPU", need.num_gpus)}
    lacking = [
        f"{workers * each:g} {word} ({there.get(key, 0):g} there)"
        for word, (key, each) in asked.items()
        if workers * each > there.get(key, 0)
    ]
    if lacking:
        needs = " and ".join(lacking)
        log.warning("%s: needs %s to begin and waits; see `ray status`", name, needs)

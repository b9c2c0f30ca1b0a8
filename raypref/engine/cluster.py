"""The Ray cluster a job runs on: joined or started, and whether it has what is asked for."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

from raypref.core.config import InputError, Resources
from raypref.core.imports import quick_imports
from raypref.core.messages import first_line
from raypref.core.progress import waiting
from raypref.models import hub

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
PASSED_ON = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "RAYPREF_CACHE", hub.COMMITS)
ALONE = "RAYPREF_OWN_RAY"  # set where this process started Ray: no node will join
LOOK_SECONDS = 60.0
ANSWER_SECONDS = 10.0
JOIN_SECONDS = 5.0  # for the first GPU, where nothing adds nodes
LONGEST_SOCKET = 107  # bytes of a path
SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
LISTENER = "pymp-01234567/listener-01234567"  # of Python's multiprocessing, in TMPDIR


def submitted() -> bool:
    """Whether this process is the driver of a job that was submitted to Ray."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def connected() -> bool:
    """Whether this process has joined or started a Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def start_ray() -> None:
    """Join the cluster of `RAY_ADDRESS` or of a running head, or start one here; keep it quiet."""
    with quick_imports():
        import ray
        from ray.data import DataContext

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes on Ray Data's own actors
    if not ray.is_initialized():
        where = os.environ.get("RAY_ADDRESS", "")
        what = f"joining the Ray cluster at {where}" if where else "starting Ray"
        log.info("%s", what)
        options: dict[str, Any] = {}
        if _joins(where):
            os.environ.pop(ALONE, None)
            options["runtime_env"] = {"env_vars": _worker_variables()}
        else:
            # Workers of a Ray started here inherit variables, and start quicker than with an
            # environment of their own. None of its nodes is taken away by a cloud.
            os.environ |= QUIET | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", ALONE: "1"}
            options |= {"address": "local"} | _short_folder()
        # The driver reports progress, errors come as exceptions; Ray's log files hold the rest.
        with waiting(what), _without_note(), _working_directory(), _short_listeners():
            _initialize(where, options)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _initialize(where: str, options: dict[str, Any]) -> None:
    """`ray.init`, once more where a Ray of our own did not come up.

    Several that start at once on a busy machine may draw the same port; Ray gives up on the one
    that lost it.
    """
    import ray

    for last in (False, True):
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
            return
        except ConnectionError as error:
            said = first_line(error)
            raise InputError(f"RAY_ADDRESS={where}: no Ray cluster answers: {said}") from None
        except Exception as error:
            if last or options.get("address") != "local":
                raise
            log.warning("Ray did not start (%s); starting it once more", first_line(error))
            ray.shutdown()


def _temporary_folder() -> str:
    """Below which Ray keeps its sockets and logs."""
    return os.environ.get("RAY_TMPDIR") or gettempdir()


def _joins(where: str) -> bool:
    """Whether there is a cluster to join; Ray would try a dead address for many minutes.

    Args:
        where: RAY_ADDRESS; empty: a head on this machine, if one runs.

    Raises:
        InputError: the cluster that it names does not answer.
    """
    if where == "local":
        return False
    address = _head_here() if where in ("", "auto") else where
    if address is None:
        return bool(where)  # with "auto" Ray looks for heads that left no file, too
    failed = _no_answer(address)
    if failed is None:
        return True
    if where:
        raise InputError(
            f"RAY_ADDRESS={where}: no Ray cluster answers there ({failed}); start it, correct the "
            "address, or unset RAY_ADDRESS to start Ray on this machine"
        )
    log.warning("the Ray head at %s is gone (%s); starting Ray on this machine", address, failed)
    return False


def _head_here() -> str | None:
    """The address that `ray start --head` left on this machine; a killed head leaves it too."""
    try:
        file = Path(_temporary_folder(), "ray", "ray_current_cluster")
        return file.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _no_answer(address: str) -> str | None:
    """Why no Ray answers at a host and port; None where one does, or for another address."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        return str(error)
    if os.environ.get("RAY_USE_TLS", "0") == "0":
        return _no_server(f"{host}:{port}")
    return None


def _no_server(address: str) -> str | None:
    """Why what listens is no Ray: Ray speaks gRPC, and one that hangs accepts and says nothing."""
    import grpc

    options = [("grpc.enable_http_proxy", 0)]  # as in Ray
    with grpc.insecure_channel(address, options) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            return f"what listens there does not speak to Ray within {ANSWER_SECONDS:g} s"
    return None


def _short_folder() -> dict[str, str]:
    """Ray's own folder where the usual one is too long for the names of its sockets."""
    folder = _temporary_folder()
    if len(os.fsencode(f"{folder}/{SOCKET}")) <= LONGEST_SOCKET:
        return {}
    log.warning(
        "the path %s is too long for Ray's sockets; using /tmp/ray (RAY_TMPDIR sets another one)",
        folder,
    )
    return {"_temp_dir": "/tmp/ray"}


@contextmanager
def _short_listeners() -> Iterator[None]:
    """Ray's dashboard has sockets in TMPDIR: where that is too long, /tmp is Ray's."""
    before = os.environ.get("TMPDIR")
    if len(os.fsencode(f"{gettempdir()}/{LISTENER}")) <= LONGEST_SOCKET or before is None:
        yield
        return
    os.environ["TMPDIR"] = "/tmp"
    try:
        yield
    finally:
        os.environ["TMPDIR"] = before


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


def require_usable_gpus(num_gpus: float) -> None:
    """See that a worker that holds a GPU can use it: where it cannot, models would run for days.

    Args:
        num_gpus: what the worker holds, above 0. Where no node has it, nothing is seen.

    Raises:
        InputError: names driver and CUDA.
    """
    import ray

    from raypref.core.device import why_no_gpu

    if ray.available_resources().get("GPU", 0) < num_gpus:
        return  # all are in use, or a node is still to come
    look = ray.remote(num_gpus=num_gpus, num_cpus=0, max_retries=0)(why_no_gpu)
    with waiting("looking whether the GPU can be used"):
        asked = look.remote()
        done, _ = ray.wait([asked], timeout=LOOK_SECONDS)
    if not done:  # shares of several GPUs add up to none that is free
        ray.cancel(asked, force=True)
        return
    if reason := ray.get(asked):
        raise InputError(
            f"num_gpus={num_gpus:g}: the GPU cannot be used: {reason}; or set num_gpus=0 in the "
            "resources to compute on the CPU"
        )


def idle_gpus(asked: bool) -> str:
    """A line where nothing asks for a GPU and there is one; else empty."""
    import ray

    count = ray.cluster_resources().get("GPU", 0)
    if asked or not count:
        return ""
    return (
        f"{count:g} GPU{'' if count == 1 else 's'} there, and every step has num_gpus=0: all is "
        "computed on the CPU; set num_gpus=1 in the resources of the steps"
    )


def require_nodes(name: str, need: Resources, *, workers: int) -> None:
    """Say what cores and GPUs are lacking for so many workers: Ray waits for them in silence.

    Args:
        name: of the pass or training, or the key of its resources.
        need: what each worker holds.
        workers: how many there must be.

    Raises:
        InputError: this process started Ray, so no node will join; or GPUs are asked for, and the
            cluster has none and nothing that adds nodes to it.
    """
    import ray

    there = ray.cluster_resources()
    asked = {"core": ("CPU", need.num_cpus), "GPU": ("GPU", need.num_gpus)}
    lacking = [
        f"{workers * each:g} {word}{'' if workers * each == 1 else 's'} ({there.get(key, 0):g} "
        f"{'on this machine' if ALONE in os.environ else 'in the cluster'})"
        for word, (key, each) in asked.items()
        if workers * each > there.get(key, 0)
    ]
    if not lacking:
        return
    needs = " and ".join(lacking)
    if ALONE in os.environ:
        raise InputError(
            f"{name}: needs {needs}; lower the num_cpus, num_gpus or workers of its resources, or "
            "name a cluster with RAY_ADDRESS"
        )
    if need.num_gpus and not there.get("GPU") and not _gpus_may_come():
        raise InputError(
            f"{name}: needs {needs}, and nothing adds nodes to this cluster; start nodes with GPUs "
            "before the job, or set num_gpus=0 in the resources to compute on the CPU"
        )
    log.warning("%s: needs %s and waits for nodes; see `ray status`", name, needs)


def _gpus_may_come() -> bool:
    """Whether a cluster without GPUs has an autoscaler; GPUs may also join within `JOIN_SECONDS`.

    They do where nodes are started by hand at the same time as the job.
    """
    import ray

    ends = time.monotonic() + JOIN_SECONDS
    with waiting("looking for GPUs in the cluster"):
        while True:
            if ray.cluster_resources().get("GPU") or _autoscales():
                return True
            if time.monotonic() >= ends:
                return False
            time.sleep(0.5)


def _autoscales() -> bool:
    """Whether something adds nodes to the cluster, as `ray up` and KubeRay have it."""
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    nodes = ray.nodes()
    if any(node.get("Labels", {}).get("ray.io/node-group") for node in nodes):
        return True
    report = json.loads(_internal_kv_get("__autoscaling_status") or "{}")
    if not report:  # nothing watches the cluster but, perhaps, what starts pods
        return "KUBERNETES_SERVICE_HOST" in os.environ
    # A node of no autoscaler has the type node_ID in the report that every head makes.
    types = {*(report.get("autoscaler_report") or {}).get("active_nodes", {})}
    return not types <= {f"node_{node['NodeID']}" for node in nodes}

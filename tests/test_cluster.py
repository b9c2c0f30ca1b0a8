"""What a cluster lacks is said or refused; so is an address where none answers."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray
from ray.experimental import internal_kv

from raypref import cli
from raypref.core import device
from raypref.core.config import InputError, Resources
from raypref.engine import cluster
from raypref.run import execute

JOIN_SECONDS = cluster.JOIN_SECONDS
NEED = Resources(workers=3, num_cpus=1, num_gpus=1)


@pytest.fixture(autouse=True)
def small_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    monkeypatch.delenv(cluster.ALONE, raising=False)


def test_what_a_cluster_lacks_is_said(caplog: pytest.LogCaptureFixture) -> None:
    cluster.require_nodes("stage1", NEED, workers=1)
    assert not caplog.messages
    cluster.require_nodes("stage1", NEED, workers=3)
    (said,) = caplog.messages
    assert said.startswith("stage1: needs 3 cores (2 in the cluster) and 3 GPUs (1 in the cluster)")


def test_on_a_ray_started_here_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No node can join: Ray would wait for ever."""
    monkeypatch.setenv(cluster.ALONE, "1")
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    cluster.require_nodes("stage1", Resources(num_cpus=2), workers=1)
    with pytest.raises(InputError, match=r"needs 1 GPU \(0 on this machine\); lower .*num_gpus"):
        cluster.require_nodes("pickscore.resources", NEED, workers=1)


OWN = {"NodeID": "ab12", "Labels": {"ray.io/node-id": "ab12"}}
BY_HAND = b'{"autoscaler_report": {"active_nodes": {"node_ab12": 1}}}'
LAUNCHED = b'{"autoscaler_report": {"active_nodes": {"ray.head.default": 1}}}'


@pytest.fixture
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was started by hand, without GPUs."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr(ray, "nodes", lambda: [OWN])
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: BY_HAND)
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 0.6)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def test_a_cluster_without_gpus_that_cannot_grow_is_refused(
    no_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.require_nodes("scores", Resources(num_cpus=4), workers=1)  # asks for none
    for report in (BY_HAND, b"", b'{"load_metrics_report": {}}'):
        monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, report=report: report)
        with pytest.raises(
            InputError, match=r"^stage1: needs 3 GPUs \(0 in the clu.*start nodes"
        ) as e:
            cluster.require_nodes("stage1", NEED, workers=3)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("fault", "given", "message"),
    [
        (
            "cluster",
            "pickscore.resources.num_gpus=1",
            "needs 1 GPU (0 in the cluster), and nothing",
        ),
        ("driver", "pickscore.resources.num_gpus=1", "the GPU cannot be used: torch 2 is built"),
        ("fraction", "train.stage1.resources.num_gpus=0.5", "a training's worker takes whole GPUs"),
    ],
)
def test_a_job_that_no_gpu_can_do_ends_in_one_line_with_status_2_within_10_seconds(
    fault: str,
    given: str,
    message: str,
    no_gpus: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cluster, "JOIN_SECONDS", JOIN_SECONDS)
    monkeypatch.setattr(execute, "start_ray", lambda: None)
    if fault == "driver":
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
        monkeypatch.setattr(ray, "remote", lambda **_: Remote)
        monkeypatch.setattr(ray, "get", lambda answer: answer)
        monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []))
        monkeypatch.setattr(device, "why_no_gpu", lambda: "torch 2 is built for CUDA 13, driver 4")
    began = time.monotonic()
    words = ["tiny", f"storage={tmp_path}", "run=mine", given, "--log", "lines"]
    assert cli.main("run", words, program="raypref run") == 2
    assert time.monotonic() - began < 10
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(told) == 1 and message in told[0]


@pytest.mark.parametrize("sign", ["launcher", "group", "kubernetes", "joins"])
def test_one_that_may_get_gpus_is_waited_for(
    sign: str, no_gpus: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if sign == "launcher":
        monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: LAUNCHED)
    elif sign == "group":  # KubeRay's second autoscaler, `ray up`
        labels = {"ray.io/node-group": "headgroup"}
        monkeypatch.setattr(ray, "nodes", lambda: [{**OWN, "Labels": labels}])
    elif sign == "kubernetes":  # pods that wait for a node
        monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key: None)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    else:
        seen = iter([{"CPU": 8.0}, {"CPU": 8.0}])
        monkeypatch.setattr(ray, "cluster_resources", lambda: next(seen, {"CPU": 16.0, "GPU": 8.0}))
    cluster.require_nodes("stage1", NEED, workers=3)
    (said,) = caplog.messages
    assert said.startswith("stage1: needs 3 GPUs (0 in the cluster) and waits for nodes")


class Remote:
    """A task that runs where it is called."""

    def __init__(self, work: Callable[[], str]) -> None:
        self.remote = work


@pytest.mark.parametrize("reason", ["", "torch 2 is built for CUDA 13.0, driver 470.1: too old"])
def test_a_gpu_that_cannot_be_used_is_refused_before_any_work(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, float]] = []

    def remote(**resources: float) -> Callable[[Callable[[], str]], Remote]:
        asked.append(resources)
        return Remote

    monkeypatch.setattr(ray, "available_resources", lambda: {"GPU": 1.0})
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []))
    monkeypatch.setattr(device, "why_no_gpu", lambda: reason)
    if reason:
        with pytest.raises(InputError, match=r"^num_gpus=0\.5: the GPU cannot be used: torch 2 is"):
            cluster.require_usable_gpus(0.5)
    else:
        cluster.require_usable_gpus(0.5)
    assert [each["num_gpus"] for each in asked] == [0.5]
    asked.clear()
    cluster.require_usable_gpus(2.0)  # a node is still to come
    assert not asked


def test_a_gpu_that_nobody_asks_for_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "1 GPU there, and every step has num_gpus=0" in cluster.idle_gpus(asked=False)
    assert cluster.idle_gpus(asked=True) == ""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    assert cluster.idle_gpus(asked=False) == ""


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "nowhere.invalid:{}"]
)
def test_an_address_where_nothing_listens_is_refused(form: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and no listen()
        address = form.format(unused.getsockname()[1])
        with pytest.raises(InputError, match=r"RAY_ADDRESS=.*no Ray cluster answers") as caught:
            cluster._joins(address)
    assert "\n" not in str(caught.value)


def test_an_address_that_accepts_and_says_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a head does whose process hangs."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        address = f"127.0.0.1:{hangs.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"RAY_ADDRESS={address}: .*within 0\.5 s"):
            cluster._joins(address)


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a server that speaks as Ray's does."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_an_address_that_answers_is_joined(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert cluster._joins(head)
    assert cluster._joins(f"ray://{head}")
    assert not cluster._joins("local")


def test_a_head_on_this_machine_is_joined_while_it_answers(
    head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file that names it outlives a head that was killed."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not cluster._joins("")
    assert cluster._joins("auto")  # Ray looks for others itself
    (tmp_path / "ray").mkdir()
    file = tmp_path / "ray" / "ray_current_cluster"
    file.write_text(head)
    assert cluster._joins("") and cluster._joins("auto")
    file.write_text("127.0.0.1:1")
    assert not caplog.messages
    assert not cluster._joins("")
    (said,) = caplog.messages
    assert said.startswith("the Ray head at 127.0.0.1:1 is gone (")
    with pytest.raises(InputError, match=r"RAY_ADDRESS=auto: no Ray cluster answers there"):
        cluster._joins("auto")


@pytest.mark.parametrize(
    ("failures", "options", "tries"),
    [
        (1, {"address": "local"}, 2),
        (2, {"address": "local"}, 2),
        (1, {}, 1),
    ],
)
def test_a_ray_of_our_own_that_does_not_come_up_is_started_once_more(
    failures: int,
    options: dict[str, str],
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not a cluster's, which is another's to start."""
    calls = []

    def init(**given: object) -> None:
        calls.append(given)
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup. This could happen")

    monkeypatch.setattr(ray, "init", init)
    if tries > failures:
        cluster._initialize("", options)
        assert "did not start (Exception: The current node timed out" in caplog.text
    else:
        with pytest.raises(Exception, match="timed out during startup"):
            cluster._initialize("", options)
    assert len(calls) == tries


def test_sockets_of_a_long_temporary_folder_go_to_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/short")
    assert cluster._short_folder() == {}
    long = tmp_path / ("node" * 20)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    folder = cluster._short_folder()["_temp_dir"]
    assert len(os.fsencode(f"{folder}/{cluster.SOCKET.removeprefix('ray/')}")) <= 107
    assert str(long) in caplog.text


def test_ray_has_a_short_folder_for_sockets_of_multiprocessing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its dashboard did not start in a long TMPDIR, and was waited for for a minute."""
    long = str(tmp_path / ("node" * 20))
    monkeypatch.setenv("TMPDIR", long)
    monkeypatch.setattr(cluster, "gettempdir", lambda: long)
    with cluster._short_listeners():
        assert os.environ["TMPDIR"] == "/tmp"
    assert os.environ["TMPDIR"] == long
    monkeypatch.setattr(cluster, "gettempdir", lambda: "/short")
    with cluster._short_listeners():
        assert os.environ["TMPDIR"] == long

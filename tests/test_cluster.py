"""What a cluster lacks is said or refused; so is an address where none answers."""

import os
import socket
from pathlib import Path

import pytest
import ray

from raypref.core.config import InputError, Resources
from raypref.engine import cluster

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


@pytest.mark.parametrize(
    "form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "nowhere.invalid:{}"]
)
def test_an_address_where_nothing_listens_is_refused(form: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and no listen()
        address = form.format(unused.getsockname()[1])
        with pytest.raises(InputError, match=r"RAY_ADDRESS=.*no Ray cluster answers") as caught:
            cluster._require_answer(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_an_address_that_ray_finds_by_itself_is_not_asked(address: str) -> None:
    cluster._require_answer(address)


def test_a_listening_address_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        cluster._require_answer(f"127.0.0.1:{head.getsockname()[1]}")


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


def test_a_head_on_this_machine_is_known_by_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert not cluster._head_runs_here()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")
    assert cluster._head_runs_here()

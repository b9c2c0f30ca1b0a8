"""Promise 2 for a stream: a kill costs at most the block in each worker's hands.

The stages here only note what they take. All drivers use one Ray, a node of its own; a driver that
started its Ray itself is killed in test_kill.py.
"""

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from noted_stream import BLOCK, ROWS, WORKERS

from jobs import REPOSITORY, TOKEN, Job, end, node, running

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]

Head = tuple[Job, dict[str, int]]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A node with one core and, as it says, one GPU."""
    with node(tmp_path_factory.mktemp("head"), "--head", "--num-gpus=1", cores=1) as started:
        yield started


def noted(
    head: Head, folder: Path, *, cores: float = 0.5, gpus: float = 0.0
) -> AbstractContextManager[Job]:
    """Start the stream of noted_stream.py on the head's Ray."""
    job, ports = head
    script = str(Path(__file__).with_name("noted_stream.py"))
    env = {"PYTHONPATH": str(REPOSITORY), **TOKEN}
    env["RAY_ADDRESS"] = f"127.0.0.1:{ports['port']}"
    command = (sys.executable, script, str(folder), str(cores), str(gpus))
    return running(*command, folder=folder / "logs", env=env, scratch=job.scratch)


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "ledger").glob("part-*"))


def written(folder: Path) -> set[str]:
    """Ids of the rows in finished parts."""
    return {id_ for part in parts(folder) for id_ in pq.read_table(part)["id"].to_pylist()}


def begun(folder: Path) -> bool:
    return any((folder / "notes").glob("quick-*"))


def times(folder: Path, stage: str) -> Counter[str]:
    """How often a stage took each row; all rows are in the ledger once."""
    ids = [id_ for part in parts(folder) for id_ in pq.read_table(part)["id"].to_pylist()]
    assert len(ids) == len(set(ids)) == ROWS
    counts = Counter(path.name.split("-")[1] for path in (folder / "notes").glob(f"{stage}-*"))
    assert len(counts) == ROWS
    print(f"{stage}: {counts.total() - ROWS} rows done twice")
    return counts


@pytest.mark.parametrize(("gpus", "kills"), [(0.0, (6,)), (0.5, (0,))])
def test_a_killed_stream_repeats_at_most_one_block_a_worker(
    head: Head, gpus: float, kills: tuple[int, ...], tmp_path: Path
) -> None:
    """The driver is killed again and again, each time when so many parts are there."""
    at_kills: list[set[str]] = []
    for parts_before in kills:
        noted_before = len(list((tmp_path / "notes").glob("quick-*")))
        with noted(head, tmp_path, gpus=gpus) as stream:
            stream.wait_for(
                lambda before=noted_before, least=parts_before: (
                    len(list((tmp_path / "notes").glob("quick-*"))) > before
                    and len(parts(tmp_path)) >= least
                )
            )
            stream.kill_driver(cluster=head[0])
        at_kills.append(written(tmp_path))
        assert len(at_kills[-1]) < ROWS, "the kill came too late to test anything"
    at_kill = {path.name for path in (tmp_path / "notes").iterdir()}

    with noted(head, tmp_path, gpus=gpus) as again:
        assert again.wait() == 0, again.output

    for stage in ("quick", "slow"):
        counts = times(tmp_path, stage)
        done_last = {
            path.name.split("-")[1]
            for path in (tmp_path / "notes").glob(f"{stage}-*")
            if path.name not in at_kill
        }
        assert not done_last & at_kills[-1], "a written row was done again"
        assert max(counts.values()) <= 1 + len(kills)
        ahead = 2 if gpus and stage == "quick" else 1  # read while the model works
        assert counts.total() - ROWS <= len(kills) * WORKERS * BLOCK * ahead


def test_a_killed_actor_repeats_at_most_its_block(head: Head, tmp_path: Path) -> None:
    """The job goes on by itself: Ray starts the actor again and gives it the block once more."""
    kills = (0, 6)
    with noted(head, tmp_path) as stream:
        for parts_before in kills:
            stream.wait_for(
                lambda least=parts_before: begun(tmp_path) and len(parts(tmp_path)) >= least
            )
            victim, *_ = busy(head[0], tmp_path)
            os.kill(victim, signal.SIGKILL)
        assert stream.wait() == 0, stream.output
    for stage in ("quick", "slow"):
        counts = times(tmp_path, stage)
        assert counts.total() - ROWS <= len(kills) * BLOCK


def busy(node: Job, folder: Path) -> list[int]:
    """The node's workers, those first that have begun a row that is not written yet."""
    names = [path.name.split("-") for path in (folder / "notes").glob("slow-*")]
    done = written(folder)
    hands = {int(pid) for _, id_, pid, _ in names if id_ not in done}
    return sorted(node.workers("MapWorker"), key=lambda pid: pid not in hands)


def in_hand(node: Job, folder: Path) -> bool:
    """Whether a worker of the node has begun a row that is not written yet."""
    workers = set(map(str, node.workers("MapWorker")))
    names = [path.name.split("-") for path in (folder / "notes").glob("slow-*")]
    taken = {id_ for _, id_, pid, _ in names if pid in workers}
    return bool(taken - written(folder))


def test_a_killed_node_repeats_at_most_its_block(head: Head, tmp_path: Path) -> None:
    """Two nodes, a worker on each; one dies with all its processes and the other does the rest."""
    address = f"--address=127.0.0.1:{head[1]['port']}"
    with (
        node(tmp_path / "logs", address, cores=1, ip="127.0.0.2") as (second, _),
        noted(head, tmp_path, cores=1) as stream,
    ):
        stream.wait_for(lambda: in_hand(second, tmp_path) and len(parts(tmp_path)) >= 2)
        end(second.mark)
        assert stream.wait() == 0, stream.output
    for stage in ("quick", "slow"):
        assert times(tmp_path, stage).total() - ROWS <= BLOCK

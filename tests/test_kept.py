"""Workers stay for those who ask for the same, and end before others start."""

from collections.abc import Iterator

import pytest

from raypref.core.config import Resources
from raypref.engine import kept
from raypref.engine.kept import keep, release, released_after, share_cores


class Started:
    def __init__(self, events: list[str], name: str) -> None:
        self.alive = True
        self.events, self.name = events, name
        events.append(f"start {name}")

    def close(self) -> None:
        self.events.append(f"close {self.name}")


@pytest.fixture
def events() -> Iterator[list[str]]:
    seen: list[str] = []
    yield seen
    release()


def ask(events: list[str], name: str, *, free: float, gpus: float = 0.0) -> Started:
    need = Resources(workers=2, num_cpus=0.5, num_gpus=gpus)
    return keep(name, need, lambda: Started(events, name), free_cores=lambda: free)


def test_equal_shapes_share_workers_and_others_end_them_where_no_core_is_left(
    events: list[str],
) -> None:
    first = ask(events, "a", free=0.5)
    assert ask(events, "a", free=0.0) is first
    ask(events, "b", free=0.5)
    release()
    release()
    assert events == ["start a", "close a", "start b", "close b"]


def test_workers_stay_beside_others_where_cores_are_left(events: list[str]) -> None:
    first, second = ask(events, "a", free=2.0), ask(events, "b", free=1.0)
    assert ask(events, "a", free=0.0) is first
    assert ask(events, "b", free=0.0) is second
    assert events == ["start a", "start b"]


def test_what_holds_a_gpu_never_waits_beside_others(events: list[str]) -> None:
    ask(events, "a", free=9.0)
    ask(events, "gpu", free=9.0, gpus=0.5)
    ask(events, "b", free=9.0)
    assert events == ["start a", "close a", "start gpu", "close gpu", "start b"]


def test_jobs_that_share_a_cluster_keep_workers_within_their_share(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_share", kept._share)  # put back after the test
    share_cores(2.0)
    first = ask(events, "a", free=0.0)
    second = ask(events, "b", free=1.0)
    assert (ask(events, "a", free=0.0), ask(events, "b", free=0.0)) == (first, second)
    ask(events, "c", free=9.0)  # a third core, which others may be about to take
    ask(events, "d", free=0.0)  # of its share, but another job has it
    closed = ["close a", "close b", "start c", "close c", "start d"]
    assert events == ["start a", "start b", *closed]


def test_workers_stay_for_the_next_job_unless_this_one_fails(events: list[str]) -> None:
    with released_after(only_failed=True):
        first = ask(events, "a", free=9.0)
    assert ask(events, "a", free=9.0) is first
    with pytest.raises(ValueError, match="wrong"), released_after(only_failed=True):
        raise ValueError("wrong")
    assert events == ["start a", "close a"]


def test_workers_that_failed_serve_nobody(events: list[str]) -> None:
    ask(events, "a", free=9.0).alive = False
    assert ask(events, "a", free=9.0).alive
    assert events == ["start a", "close a", "start a"]

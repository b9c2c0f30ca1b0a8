"""Workers stay for those who ask for the same, and end before others start."""

from collections.abc import Iterator

import pytest

from raypref.kept import keep, release


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


def test_equal_shapes_share_workers_and_others_end_them_first(events: list[str]) -> None:
    first = keep("a", lambda: Started(events, "a"))
    assert keep("a", lambda: Started(events, "again")) is first
    assert keep("b", lambda: Started(events, "b")) is not first
    release()
    release()
    assert events == ["start a", "close a", "start b", "close b"]


def test_workers_that_failed_serve_nobody(events: list[str]) -> None:
    keep("a", lambda: Started(events, "a")).alive = False
    assert keep("a", lambda: Started(events, "new")).alive
    assert events == ["start a", "close a", "start new"]

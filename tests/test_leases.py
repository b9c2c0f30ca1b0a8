"""One row at a time does a step; a row that lost its turn writes no more and fails."""

from types import SimpleNamespace
from typing import Any

import pytest

from raypref.ablate import sweep


class Held:
    """The cluster's leases as a row sees them: each answer of `take` in turn, the last for ever."""

    def __init__(self, *answers: bool) -> None:
        self.answers = [*answers]
        self.given_back = False
        self.take = SimpleNamespace(remote=self._take)
        self.give_back = SimpleNamespace(remote=self._give_back)

    def _take(self, paths: list[str], holder: str) -> bool:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _give_back(self, holder: str) -> None:
        self.given_back = True


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ended: list[str] = []
    monkeypatch.setattr(sweep.ray, "get", lambda answer: answer)
    monkeypatch.setattr(sweep, "release", lambda: ended.append("workers"))
    monkeypatch.setattr(sweep, "LEASE_SECONDS", 0.06)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.01)
    return ended


STEP: Any = SimpleNamespace(name="stage1", ledgers=lambda: ())


def test_a_row_that_lost_its_turn_ends_its_workers_and_fails(released: list[str]) -> None:
    held = Held(True, True, False)
    with pytest.raises(RuntimeError, match="stage1: this row stalled"), sweep.turn(held, STEP):
        while not released:  # the step works on until its workers are gone
            pass
    assert held.given_back


def test_a_row_ends_its_workers_before_it_waits_and_keeps_them_otherwise(
    released: list[str],
) -> None:
    held = Held(False, False, True)
    with sweep.turn(held, STEP):
        assert released == ["workers"]
    assert held.given_back
    with sweep.turn(Held(True), STEP):
        pass
    assert released == ["workers"]

"""Calls are shared among actors; a lost one is waited for, and its calls go elsewhere. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_actors import Dies, FakeActor, FakeRay
from ray import cloudpickle
from ray.exceptions import RuntimeEnvSetupError

from raypref.core.config import InputError
from raypref.core.exhausted import NoRoomError
from raypref.engine import actors as engine
from raypref.engine.actors import MOST_LOSSES, UNDER_WAY, answers_of

CALLS = [(n,) for n in range(24)]
SQUARES = [n * n for n in range(24)]


def square(n: int) -> tuple[str, Any]:
    return "", n * n


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    """Puts a fake Ray of actors in the place of Ray."""

    def put(*actors: FakeActor) -> FakeRay:
        fake = FakeRay(actors)
        monkeypatch.setattr(engine, "ray", fake)
        return fake

    return put


def dying(times: int, *, at: int) -> Callable[[int], tuple[str, Any]]:
    """Squares; at one number the process ends, so many times."""
    seen: Counter[int] = Counter()

    def held(n: int) -> tuple[str, Any]:
        seen[n] += 1
        if n == at and seen[n] <= times:
            raise Dies
        return square(n)

    return held


def test_answers_come_in_the_order_of_the_calls_and_quick_actors_get_more(on: Any) -> None:
    quick, slow = FakeActor(square), FakeActor(square, ticks=5)
    fake = on(quick, slow)
    assert answers_of([quick, slow], CALLS, name="actors") == SQUARES
    assert quick.answered + slow.answered == 24
    assert slow.answered <= 6
    assert fake.time < 40  # 60, had they been dealt out
    assert max(quick.most_queued, slow.most_queued) == UNDER_WAY


def test_callers_begin_with_different_actors(on: Any) -> None:
    actors = [FakeActor(square) for _ in range(4)]
    on(*actors)
    for rank in (2, 6):
        answers_of(actors, [(3,)], name="actors", first=rank)
    assert [actor.answered for actor in actors] == [0, 0, 2, 0]


def test_calls_of_a_lost_actor_are_done_by_others_and_it_works_again_once_it_is_back(
    on: Any,
) -> None:
    held = dying(1, at=4)
    first, second = FakeActor(held), FakeActor(held)
    on(first, second)
    assert answers_of([first, second], CALLS, name="actors") == SQUARES
    assert first.deaths + second.deaths == 1
    assert min(first.answered, second.answered) > 4  # the lost one too, after its return


@pytest.mark.parametrize("count", [1, 3])
def test_several_losses_in_a_row_end_in_one_line(count: int, on: Any) -> None:
    actors = [FakeActor(dying(10**6, at=4)) for _ in range(count)]
    on(*actors)
    with pytest.raises(NoRoomError, match=r"^judges: 4 were lost in a row") as told:
        answers_of(actors, CALLS, name="judges")
    assert "memory_gib" in str(told.value) and "\n" not in str(told.value)
    # The first death of each is no proof: it might have been away since another caller's call.
    assert MOST_LOSSES < sum(actor.deaths for actor in actors) <= MOST_LOSSES + 1 + count


def test_fewer_losses_are_borne_and_so_is_one_of_every_call(on: Any) -> None:
    alone = FakeActor(dying(MOST_LOSSES, at=4))
    on(alone)
    assert answers_of([alone], CALLS, name="actors") == SQUARES
    seen = set[int]()

    def held(n: int) -> tuple[str, Any]:
        if n not in seen:
            seen.add(n)
            raise Dies
        return square(n)

    alone = FakeActor(held)
    on(alone)
    assert answers_of([alone], CALLS, name="actors") == SQUARES
    assert alone.deaths == 24


def test_a_host_that_is_lost_with_all_its_actors_is_no_row_of_losses(on: Any) -> None:
    """All of them die at once: each has died once."""
    dead = iter([True] * 6)

    def held(n: int) -> tuple[str, Any]:
        if next(dead, False):
            raise Dies
        return square(n)

    actors = [FakeActor(held) for _ in range(6)]
    on(*actors)
    assert answers_of(actors, CALLS, name="actors") == SQUARES
    assert [actor.deaths for actor in actors] == [1] * 6


def test_what_an_actor_refuses_is_not_tried_again(on: Any) -> None:
    for kind, error in (("refused", InputError), ("no room", NoRoomError)):
        actor = FakeActor(lambda n, kind=kind: (kind, "rewards.x.model: it is not there"))
        on(actor)
        with pytest.raises(error, match=r"rewards\.x\.model: it is not there$"):
            answers_of([actor], CALLS[:1], name="actors")
        assert actor.answered == 1


def test_an_environment_that_cannot_be_made_is_wrong_input(
    on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = FakeActor(square)
    fake = on(actor)

    def get(reference: Any) -> Any:
        raise RuntimeEnvSetupError("no such version of transformers")

    monkeypatch.setattr(fake, "get", get)
    with pytest.raises(InputError, match=r"^actors: no environment .*: .*no such version"):
        answers_of([actor], CALLS, name="actors")


def test_an_actor_answers_what_ended_it_and_raises_what_is_a_bug() -> None:
    kind: Any = engine._Holder.__ray_metadata__.modified_class  # type: ignore[attr-defined]

    def made(error: Exception) -> Any:
        def make() -> Any:
            raise error

        return kind(cloudpickle.dumps(make), 1)

    assert kind(cloudpickle.dumps(lambda: lambda n: n * n), 1).answer(3) == ("", 9)
    assert made(InputError("x: not there")).answer(3) == ("refused", "x: not there")
    assert made(NoRoomError("full")).answer(3) == ("no room", "full")
    assert made(torch.OutOfMemoryError("CUDA out of memory")).answer(3) == ("no room", engine.FULL)
    with pytest.raises(ZeroDivisionError):
        made(ZeroDivisionError()).answer(3)

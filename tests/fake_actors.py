"""A Ray of one process for `engine.actors`: actors that work in turns, die and come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.exceptions import ActorDiedError


class Reference:
    """What comes of a call."""

    def __init__(self, arguments: tuple[Any, ...] | None) -> None:
        self.arguments = arguments  # None: of `there`
        self.outcome: list[Any] = []  # the answer or an exception, once there is one


class Dies(Exception):  # noqa: N818
    """Raised by what an actor holds: its process ends."""


class FakeActor:
    """Answers one call per `ticks` of the clock; is away for `absence` ticks after a death."""

    def __init__(self, held: Callable[..., Any], *, ticks: int = 1, absence: int = 3) -> None:
        self.held, self.ticks, self.absence = held, ticks, absence
        self.queue: list[Reference] = []
        self.answered = self.deaths = self.worked = self.away = 0
        self.most_queued = 0
        self.answer = self.there = self  # `.answer.remote(...)`

    def remote(self, *arguments: Any) -> Reference:
        """Queue a call; without arguments it is `there`."""
        call = Reference(arguments or None)
        if arguments and self.away:  # as Ray does with calls that are not to be tried again
            call.outcome = [ActorDiedError()]
        else:
            self.queue.append(call)
            self.most_queued = max(self.most_queued, len(self.queue))
        return call

    def tick(self) -> None:
        """Work for one unit of time."""
        self.away = max(0, self.away - 1)
        if self.away or not self.queue:
            return
        self.worked += 1
        if self.queue[0].arguments is not None and self.worked < self.ticks:
            return
        call, self.worked = self.queue.pop(0), 0
        if call.arguments is None:
            call.outcome = [None]
            return
        try:
            call.outcome = [self.held(*call.arguments)]
            self.answered += 1
        except Dies:
            for lost in (call, *self.queue):
                lost.outcome = [ActorDiedError()]
            self.queue, self.away, self.deaths = [], self.absence, self.deaths + 1


class FakeRay:
    """`ray.wait` and `ray.get` over fake actors."""

    def __init__(self, actors: Sequence[FakeActor]) -> None:
        self.actors = actors
        self.time = 0

    def wait(
        self, references: list[Reference], *, num_returns: int, timeout: float | None = None
    ) -> tuple[list[Reference], list[Reference]]:
        while timeout is None and not any(each.outcome for each in references):
            assert self.time < 10_000, "nothing comes of it"
            self.time += 1
            for actor in self.actors:
                actor.tick()
        done = [each for each in references if each.outcome][:num_returns]
        return done, [each for each in references if each not in done]

    def get(self, reference: Reference) -> Any:
        (outcome,) = reference.outcome
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

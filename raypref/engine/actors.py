"""Actors that hold a model each and answer whoever asks; one that is lost is started anew.

A pool (`pool.py`) does one pass after another, which the driver feeds. These actors are asked by
other workers, many at once and each for itself: the callers share no queue. A caller has few calls
under way per actor and sends the next to whoever answered, so that an actor that is slow, or that
others keep busy, gets fewer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayActorError, RuntimeEnvSetupError

from raypref.core.config import InputError, Resources
from raypref.core.exhausted import NoRoomError, exhausted
from raypref.core.imports import quick_imports
from raypref.core.messages import first_line
from raypref.engine.memory import out_of_memory

MOST_LOSSES = 3  # of a call: the next one is no accident
FULL = "memory ran out; lower the resources.batch of what they hold"
UNDER_WAY = 2  # calls of one caller per actor: one is answered, one waits there


class Actors:
    """Started actors of one kind.

    Args:
        make: makes what each of them holds, in its process, when it is first asked.
        need: how many there are and what each holds.
        runtime_env: Ray's description of an environment of their own.
    """

    def __init__(
        self,
        make: Callable[[], Callable[..., Any]],
        need: Resources,
        *,
        runtime_env: Mapping[str, Any] | None,
    ) -> None:
        options: dict[str, Any] = {
            "num_cpus": need.num_cpus,
            "num_gpus": need.num_gpus or None,
            "memory": int(need.memory_gib * 2**30) or None,
            "runtime_env": dict(runtime_env) if runtime_env else None,
        }
        pickled, threads = cloudpickle.dumps(make), max(1, int(need.num_cpus))
        self.handles = [
            _Holder.options(**options).remote(pickled, threads)  # type: ignore[attr-defined]
            for _ in range(need.workers)
        ]

    def close(self) -> None:
        """End them."""
        for handle in self.handles:
            ray.kill(handle)


@ray.remote(max_restarts=-1)
class _Holder:
    """One actor. Its failures that are not to be tried again are answers too."""

    def __init__(self, make: bytes, threads: int) -> None:
        self.make, self.threads = make, threads
        self.held: Callable[..., Any] | None = None

    @ray.method(max_task_retries=-1)
    def there(self) -> None:
        """Returns as soon as it is started, also if it is lost meanwhile."""

    def answer(self, *arguments: Any) -> tuple[str, Any]:
        """What it answers, after "", or why it cannot: "refused" or "no room", and a line."""
        try:
            if self.held is None:
                with quick_imports():
                    import torch

                    torch.set_num_threads(self.threads)
                    self.held = cloudpickle.loads(self.make)()
            return "", self.held(*arguments)
        except InputError as error:
            return "refused", str(error)
        except Exception as error:
            line = exhausted(error) or (FULL if out_of_memory(error) else "")
            if not line:
                raise
            return "no room", line


def answers_of(
    handles: Sequence[Any], calls: Sequence[tuple[Any, ...]], *, name: str, first: int = 0
) -> list[Any]:
    """Share calls among actors; returns their answers in the order of the calls.

    A call whose actor is lost goes to another one; the lost one gets calls again once Ray has
    started it anew.

    Args:
        handles: of `Actors`.
        calls: the arguments of each.
        name: of the actors, for messages.
        first: number of the actor to begin with; callers that differ in it spread from the start.

    Raises:
        InputError: what they hold cannot be made, or their environment cannot.
        NoRoomError: memory is full, or a call was lost `MOST_LOSSES` + 1 times.
    """
    count = len(handles)
    order = [(first + place) % count for place in range(count)]
    left, answers = [*range(len(calls))], dict[int, Any]()  # a heap: the oldest call is the next
    flying: dict[Any, tuple[int, int | None]] = {}  # reference -> actor; call, or None: `there`
    away, gone = set[int](), set[int]()
    sure = set[int]()  # actors that were there since their last loss: others may still be away
    losses = Counter[int]()  # by call
    while len(answers) < len(calls):
        while left:
            load = Counter(actor for actor, _ in flying.values())
            free = [a for a in order if a not in away and load[a] < UNDER_WAY]
            if not free:
                break
            actor, call = min(free, key=load.__getitem__), heappop(left)
            flying[handles[actor].answer.remote(*calls[call])] = actor, call
        ray.wait([*flying], num_returns=1)
        # All that failed by now, before anything is sent again: a host is lost with all its actors.
        for done in ray.wait([*flying], num_returns=len(flying), timeout=0)[0]:
            actor, told = flying.pop(done)
            try:
                answer = ray.get(done)
            except RayActorError as error:
                if told is None:  # nobody starts it any more
                    gone.add(actor)
                    if len(gone) == count:
                        raise _lost(name, "all were lost", error) from error
                    continue
                heappush(left, told)
                if actor in away:  # a call that waited behind the one that was lost
                    continue
                losses[told] += actor in sure
                if losses[told] > MOST_LOSSES:
                    raise _lost(name, f"{losses[told]} were lost in a row", error) from error
                away.add(actor)
                sure.discard(actor)
                flying[handles[actor].there.remote()] = actor, None
                continue
            except RuntimeEnvSetupError as error:
                said = " ".join(str(error).split())[:300]
                raise InputError(
                    f"{name}: no environment (runtime_env) for them: {said}"
                ) from error
            sure.add(actor)
            if told is None:
                away.discard(actor)
            else:
                answers[told] = _sound(name, answer)
    return [answers[call] for call in range(len(calls))]


def _sound(name: str, answer: tuple[str, Any]) -> Any:
    """What an actor answered; raises where it says why it cannot."""
    kind, value = answer
    if kind == "refused":
        raise InputError(value)
    if kind == "no room":
        raise NoRoomError(f"{name}: {value}")
    return value


def _lost(name: str, what: str, error: BaseException) -> NoRoomError:
    return NoRoomError(
        f"{name}: {what} ({first_line(error)}); most often a host has too little memory: set "
        "memory_gib, or a lower batch, in the resources of what they hold, then give the same "
        "command again"
    )

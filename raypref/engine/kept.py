"""Workers that stay started between steps.

Starting a worker process costs seconds of imports, so consecutive steps that ask for the same
workers use the same processes. Workers of another shape end first, unless there is room beside
them: what holds a GPU never waits beside others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, TypeVar

from raypref.core.config import Resources


class Workers(Protocol):
    """Started worker processes."""

    alive: bool  # False once they failed: they serve no further step

    def close(self) -> None:
        """End them; returns when they are asked to end."""


W = TypeVar("W", bound=Workers)


class _Held(NamedTuple):
    shape: Hashable
    need: Resources
    workers: Workers


_held: list[_Held] = []  # the oldest first
_alone = False  # whether cores that are free may be promised to others


def keep(
    shape: Hashable, need: Resources, start: Callable[[], W], *, free_cores: Callable[[], float]
) -> W:
    """Workers of a shape: those that are held, or new ones.

    Args:
        shape: what they are for and what each holds; equal shapes share workers.
        need: how many there are and what each holds.
        start: starts them.
        free_cores: asked how many cores of the cluster nobody holds.
    """
    for held in [*_held]:
        if not held.workers.alive:
            _close(held)
    for held in _held:
        if held.shape == shape:
            workers: W = held.workers  # type: ignore[assignment]  # of this shape, so of this kind
            return workers
    beside = not _alone and not need.num_gpus and not any(held.need.num_gpus for held in _held)
    if not beside or (_held and free_cores() < need.workers * need.num_cpus):
        release()
    started = start()
    _held.append(_Held(shape, need, started))
    return started


def leave_room() -> None:
    """From now on in this process no workers wait beside others: jobs share the cluster."""
    global _alone
    _alone = True


def release() -> None:
    """End all workers that are held."""
    for held in [*_held]:
        _close(held)


@contextmanager
def released_after() -> Iterator[None]:
    """End the workers when a job's work ends; who interrupts it does not wait for them."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        release()
        raise
    release()


def _close(held: _Held) -> None:
    _held.remove(held)
    held.workers.close()

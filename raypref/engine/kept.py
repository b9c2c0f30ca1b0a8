"""Workers that stay started between steps.

Starting a worker process costs seconds of imports, so consecutive steps that ask for the same
workers use the same processes. Workers of another shape end first, unless there is room beside
them: among the free cores of the cluster and, where jobs share a cluster, within this job's share.
What holds a GPU never waits beside others.
"""

from __future__ import annotations

import math
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
_share = math.inf  # cores that are this process's own


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
    if _held and not _room_beside(need, free_cores):
        release()
    started = start()
    _held.append(_Held(shape, need, started))
    return started


def _room_beside(need: Resources, free_cores: Callable[[], float]) -> bool:
    """Whether workers can be started beside those that are held."""
    if need.num_gpus or any(held.need.num_gpus for held in _held):
        return False
    cores = need.workers * need.num_cpus
    held = sum(held.need.workers * held.need.num_cpus for held in _held)
    # Within the share, and free now: a share is worked out once, and others come and nodes go.
    return held + cores <= _share and free_cores() >= cores


def share_cores(cores: float) -> None:
    """From now on this process, one of several on a cluster, keeps workers on so many cores.

    Free cores alone say little there: others may be about to take them.
    """
    global _share
    _share = cores


def release() -> None:
    """End all workers that are held."""
    for held in [*_held]:
        _close(held)


@contextmanager
def released_after(*, only_failed: bool = False) -> Iterator[None]:
    """End the workers when a job's work ends; who interrupts it does not wait for them.

    Args:
        only_failed: keep them for the next job, unless this one fails.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        release()
        raise
    if not only_failed:
        release()


def _close(held: _Held) -> None:
    _held.remove(held)
    held.workers.close()

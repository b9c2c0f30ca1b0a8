"""Workers that stay started between steps: those of one shape at a time.

Starting a worker process costs seconds of imports, so consecutive steps that ask for the same
workers use the same processes. A step that asks for others ends them first: what they hold is free.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar


class Workers(Protocol):
    """Started worker processes."""

    alive: bool  # False once they failed: they serve no further step

    def close(self) -> None:
        """End them; returns when they are asked to end."""


W = TypeVar("W", bound=Workers)

_held: list[tuple[Hashable, Workers]] = []  # at most one


def keep(shape: Hashable, start: Callable[[], W]) -> W:
    """Workers of a shape: those that are held, or new ones in their place.

    Args:
        shape: what they are for and what each holds; equal shapes share workers.
        start: starts them.
    """
    if _held and (_held[0][0] != shape or not _held[0][1].alive):
        release()
    if not _held:
        _held.append((shape, start()))
    workers: W = _held[0][1]  # type: ignore[assignment]  # of this shape, so of this kind
    return workers


def release() -> None:
    """End the workers that are held, if any."""
    while _held:
        _held.pop()[1].close()

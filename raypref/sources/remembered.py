"""What was read of sources, kept where many runs ask for it, as those of a table do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

_known: dict[Hashable, Any] | None = None  # what was read of sources, within `unchanged`


@contextmanager
def unchanged() -> Iterator[None]:
    """Within, a source is listed once, however many runs ask for its digest: tables have many."""
    global _known
    before, _known = _known, {}
    try:
        yield
    finally:
        _known = before


def remembered(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` reads of a source, read once within `unchanged`.

    Args:
        key: tells it from all else that is read.
        make: reads it.
    """
    if _known is None:
        return make()
    if key not in _known:
        _known[key] = make()
    found: T = _known[key]
    return found

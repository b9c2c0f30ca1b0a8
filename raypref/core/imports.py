"""Large libraries imported more quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import with Python's garbage collector off: torch, diffusers and peft take a fifth less time.

    It would look again and again through what they make, of which nothing goes. Models may be
    loaded inside too: they leave no weights to be collected.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()

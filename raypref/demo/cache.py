"""Where the tiny world keeps what it renders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raypref.core import disk_cache

VERSION = 3  # of everything in the cache; to bump when the renderer or the scenes change


def cached(name: str, build: Callable[[Path], object]) -> Path:
    """The entry of the tiny world, as `disk_cache.made_once` keeps it."""
    return disk_cache.made_once(f"tiny-{VERSION}/{name}", build)

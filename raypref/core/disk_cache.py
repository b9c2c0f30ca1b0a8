"""What is made once per machine and kept on its disk: each entry whole or not there at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from raypref.core.config import InputError

_BUILDING = threading.Lock()


def made_once(name: str, build: Callable[[Path], object]) -> Path:
    """The cache entry `name`, made by `build(path)` when it is missing.

    The cache is `$RAYPREF_CACHE` or `~/.cache/raypref`. An entry appears whole or not at all;
    when two processes build it at once, both succeed and the first one's stays.

    Args:
        name: path of a file or folder in the cache.
        build: writes the file or folder at the path it is given; the parent folder exists.

    Raises:
        InputError: the cache cannot be written.
    """
    root = Path(os.environ.get("RAYPREF_CACHE") or "~/.cache/raypref").expanduser().absolute()
    entry = root / name
    with _BUILDING:
        if entry.exists():
            return entry
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            workshop = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
        except OSError as error:
            raise InputError(
                f"the cache {root} cannot be written ({error.strerror}); "
                "set RAYPREF_CACHE to a folder that can"
            ) from None
        try:
            build(workshop / entry.name)
            (workshop / entry.name).rename(entry)
        except OSError:
            # Renaming a folder onto one that another process finished in the meantime.
            if not entry.exists():
                raise
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return entry

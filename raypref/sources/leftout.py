"""What is never data, wherever it lies below a source: hidden and system files, own results."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable

# In lower case. Operating systems and NAS boxes make them: deleted files, thumbnails, metadata.
SYSTEM = frozenset(
    (
        *("@eadir", "#recycle", "@recycle", "lost+found", "__macosx", "$recycle.bin", "recycler"),
        *("system volume information", "thumbs.db", "desktop.ini", "#snapshot", "~snapshot"),
        *("network trash folder", "temporary items"),
    )
)
APPLE_DOUBLE = "._"  # macOS puts such a file, no image whatever its name says, before each other
# A folder with one holds our own results; older ones have started.json.
RESULTS = frozenset((".started.json", "started.json", "run.json", "mlflow.db"))
_BESIDE_RECORD = ("mlartifacts", "mlruns")  # lie where mlflow.db does


def never_data(part: str) -> bool:
    """Whether a file or folder of this name is never data: hidden, or made by a system."""
    hidden = part.startswith(".") and part not in (".", "..")
    return hidden or part.lower() in SYSTEM


def results_among(names: Iterable[str]) -> set[str]:
    """The folders that hold our own results, told by the names of all files.

    The source's own folder is none of them: who names it wants what lies there.
    """
    marks = [name for name in names if posixpath.basename(name) in RESULTS]
    found = {posixpath.dirname(name) for name in marks} - {""}
    return found | set(_BESIDE_RECORD) if "mlflow.db" in marks else found


def left_out_by(name: str, results: Collection[str] = ()) -> str | None:
    """The file or folder on the way to a name for which it is left out; None: it is data.

    Args:
        name: relative to the source.
        results: folders with our own results, as `results_among` tells them.
    """
    parts = name.split("/")
    if not results and not any(map(never_data, parts)):
        return None
    ways = (posixpath.join(*parts[:end]) for end in range(1, len(parts) + 1))
    return next(
        (way for way in ways if never_data(posixpath.basename(way)) or way in results), None
    )

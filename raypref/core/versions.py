"""What a result was made with: versions of the libraries, the project's commit."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from raypref import __version__

LIBRARIES = ("raypref", "torch", "diffusers", "transformers", "peft", "ray", "pyarrow", "pillow")
OPTIONAL = ("pillow-heif",)  # which photographs can be read hangs on it


def versions() -> dict[str, str]:
    """Name to version; `commit` is the project's git commit, empty outside a checkout."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        **_installed(),
        "commit": commit(),
    }


def _installed() -> dict[str, str]:
    found = {}
    for name in OPTIONAL:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def own_version() -> str:
    """The package's version, and its git commit in a checkout: `0.1.0 (commit 5b3283210f2a)`."""
    where = commit()
    return __version__ + (f" (commit {where})" if where else "")


def commit() -> str:
    """The project's git commit; empty outside a checkout.

    A package that is installed below another project's checkout is not tracked there: that
    project's commit says nothing about it.
    """
    tracked = _git("ls-files", Path(__file__).name)
    return _git("describe", "--always", "--dirty", "--abbrev=12") if tracked else ""


def commit_hash() -> str:
    """The project's whole git commit; empty outside a checkout."""
    return _git("rev-parse", "HEAD") if commit() else ""


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""

"""What a result was made with: versions of the libraries, the project's commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("raypref", "torch", "diffusers", "transformers", "peft", "ray", "pyarrow", "pillow")


def versions() -> dict[str, str]:
    """Name to version; `commit` is the project's git commit, empty outside a checkout."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "commit": _commit(),
    }


def _commit() -> str:
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""

"""The worked examples of docs/extending.md, as modules outside the package."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]


def example(heading: str, language: str = "python") -> str:
    """The one block of code in a section of the page."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    [code] = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    return str(code)


@contextmanager
def registered(
    name: str, code: str, registry: dict[str, Any], folder: Path
) -> Iterator[ModuleType]:
    """The module, imported from a file in a folder; the registry is as before afterwards."""
    before = dict(registry)
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(name, None)
        registry.clear()
        registry.update(before)


def run_python(
    *arguments: str, variables: Mapping[str, str], given: bytes = b""
) -> tuple[int, str]:
    """Exit status and output of a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=variables,
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout.decode()

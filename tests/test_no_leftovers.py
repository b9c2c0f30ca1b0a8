"""Nothing in the package is there for the tests alone, and no text cites what is not here."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORD = re.compile(r"\w+")
PLAIN = {"saliency_map"}  # the phases of a transform in one call, as docs/method.md states them
ELSEWHERE = re.compile(r"\b(method|design)[,:] section")


def texts(*patterns: str) -> dict[Path, str]:
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def test_every_public_name_is_used_outside_the_tests():
    """Ray's actors, registries and settings are used by their names too, so a mention counts."""
    own = texts("raypref/**/*.py")
    others = texts("raypref/**/*.html", "jobs/*.py", "benchmarks/*.py", "docs/*.md")
    said = Counter(word for text in (own | others).values() for word in WORD.findall(text))
    kinds = (ast.FunctionDef, ast.ClassDef)
    made = [
        (path.relative_to(ROOT), node.name)
        for path, text in own.items()
        for node in ast.parse(text).body
        if isinstance(node, kinds) and not node.name.startswith("_")
    ]
    assert len(made) > 300
    unused = [(path, name) for path, name in made if said[name] == 1 and name not in PLAIN]
    assert [f"{path}: {name}" for path, name in unused] == []


def test_no_text_cites_a_document_that_is_not_here():
    own = texts("raypref/**/*.py", "tests/**/*.py", "docs/*.md", "*.md")
    assert [str(path) for path, text in own.items() if ELSEWHERE.search(text)] == []

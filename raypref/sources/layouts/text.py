"""Text files with a prompt per line."""

from __future__ import annotations

from collections.abc import Iterator

from raypref.sources.base import Layout
from raypref.sources.prompts import Prompt
from raypref.sources.reading import text_lines
from raypref.sources.store import Store


def prompts(store: Store, file: str) -> Iterator[Prompt]:
    """Every line."""
    for line in text_lines(store, file):
        yield Prompt(line)


LAYOUT = Layout(prompts=prompts, suffixes=(".txt",))

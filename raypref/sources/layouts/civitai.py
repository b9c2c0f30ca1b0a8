"""Civitai-top: prompts.json maps file names in images/ to records with a prompt."""

from __future__ import annotations

from collections.abc import Iterator

from raypref.core.config import InputError
from raypref.core.rows import Row
from raypref.sources.base import Layout
from raypref.sources.captions import Columns, as_text
from raypref.sources.reading import lookup
from raypref.sources.records import document, path_of, photograph
from raypref.sources.store import Store


def photographs(store: Store, _columns: Columns) -> Iterator[Row]:
    """Every image that prompts.json names, sorted by name."""
    content = document(store, "prompts.json")
    if not isinstance(content, dict):
        raise InputError(f"{store.path}: prompts.json must map file names to records")
    look = lookup(store)
    for name in sorted(content):
        prompt = content[name].get("prompt") if isinstance(content[name], dict) else None
        yield photograph(look, as_text(name), path_of(f"images/{name}"), prompt)


LAYOUT = Layout(photographs=photographs)

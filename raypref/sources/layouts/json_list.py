"""JSON lists of prompts: plain strings, as HPDv2's are, or objects."""

from __future__ import annotations

import json
from collections.abc import Iterator

from raypref.core.config import InputError
from raypref.sources.base import Layout
from raypref.sources.prompts import Prompt, of_json
from raypref.sources.reading import read, shown
from raypref.sources.records import JSON_BYTES
from raypref.sources.store import Store


def prompts(store: Store, file: str) -> Iterator[Prompt]:
    """Every entry."""
    where = shown(store, file)
    text = read(store, file, max_bytes=JSON_BYTES).decode("utf-8-sig")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{where}: not a JSON list")
    for number, entry in enumerate(entries, start=1):
        if isinstance(entry, str):
            yield Prompt(entry)
        else:
            yield of_json(f"{where}, entry {number}", entry)


LAYOUT = Layout(prompts=prompts, suffixes=(".json",))

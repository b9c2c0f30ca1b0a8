"""Indexes: .jsonl files whose lines name a file and its caption, or hold a prompt.

Paths are relative to the index; they may not lead out of the source.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator

from raypref.core.config import InputError
from raypref.core.rows import Row, index_row
from raypref.sources.base import Layout
from raypref.sources.captions import Columns, json_records
from raypref.sources.prompts import Prompt, of_json
from raypref.sources.reading import lookup, shown, sound_files, text_lines
from raypref.sources.records import path_of, photograph
from raypref.sources.store import Store


def photographs(store: Store, columns: Columns) -> Iterator[Row]:
    """Lines such as `{"file": "a.jpg", "caption": "a dog"}`; an unreadable line is dropped.

    Of a list of captions each is an input of its own.
    """
    look = lookup(store)

    def lines(file: str) -> Iterator[Row]:
        for record in json_records(store, file, columns):
            again = f"//{record.again}" if record.again else ""
            id_ = f"{file}#{record.number:09d}{again}"
            if record.file is None:
                yield index_row(id_, file, None, problem=record.problem)
            else:
                beside = posixpath.join(posixpath.dirname(file), record.file)
                yield photograph(look, id_, path_of(beside), record.caption)

    files = (file.name for file in store.files() if file.name.endswith(".jsonl"))
    yield from sound_files(store, files, lines)


def prompts(store: Store, file: str) -> Iterator[Prompt]:
    """Lines such as `{"prompt": "a dog", "tag": "animals"}`."""
    for number, line in enumerate(text_lines(store, file), start=1):
        if line.strip():
            where = f"{shown(store, file)}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON: {error}") from None
            yield of_json(where, record)


LAYOUT = Layout(
    photographs=photographs,
    prompts=prompts,
    suffixes=(".jsonl",),
    beside=lambda store, file, columns: False,  # beside photographs it may be anything
    advice="each line needs a caption, prompt or text; source.caption_column names another key",
)

"""Images listed by JSON records: a .jsonl index, and the layouts of public datasets.

Paths in records are relative to the record file; they may not lead out of its folder.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from raypref.config import InputError
from raypref.rows import Row, index_row
from raypref.sources.captions import ANY, Columns, as_text, caption_of, json_records
from raypref.sources.reading import lookup, sound_files
from raypref.sources.store import Store

_Look = Callable[[str], tuple[str, int | None]]


def jsonl(store: Store, columns: Columns = ANY) -> Iterator[Row]:
    """Lines such as `{"file": "a.jpg", "caption": "a dog"}`; an unreadable line is a reject."""
    look = lookup(store)

    def lines(file: str) -> Iterator[Row]:
        for record in json_records(store, file, columns):
            id_ = f"{file}#{record.number:09d}"
            if record.file is None:
                yield index_row(id_, file, None, problem=record.problem)
            else:
                beside = posixpath.join(posixpath.dirname(file), record.file)
                yield _row(look, id_, _path(beside), record.caption)

    files = (file.name for file in store.files() if file.name.endswith(".jsonl"))
    yield from sound_files(store, files, lines)


def hpdv3(store: Store) -> Iterator[Row]:
    """HPDv3's all.json: the images whose model is `real_images`, once each, with their prompt."""
    seen: set[str] = set()
    look = lookup(store)
    for number, record in enumerate(_list(store, "all.json")):
        if not isinstance(record, dict):
            yield _bad_record("all.json", number)
            continue
        for side in ("1", "2"):
            if record.get(f"model{side}") != "real_images":
                continue
            path = record.get(f"path{side}")
            if not isinstance(path, str):
                yield _bad_record("all.json", number, side)
                continue
            stem = posixpath.splitext(posixpath.basename(path))[0]
            if stem not in seen:  # the same photograph occurs in several records
                seen.add(stem)
                yield _row(look, f"{number:09d}#{stem}", _path(path), record.get("prompt"))


def civitai(store: Store) -> Iterator[Row]:
    """Civitai-top: prompts.json maps file names in images/ to records with a prompt."""
    content = _json(store, "prompts.json")
    if not isinstance(content, dict):
        raise InputError(f"{store.path}: prompts.json must map file names to records")
    look = lookup(store)
    for name in sorted(content):
        prompt = content[name].get("prompt") if isinstance(content[name], dict) else None
        yield _row(look, as_text(name), _path(f"images/{name}"), prompt)


def imagereward(store: Store) -> Iterator[Row]:
    """ImageRewardDB: of every record the generations of the best rank."""
    seen: set[str] = set()
    look = lookup(store)
    for file, _ in store.files():
        if not file.endswith(".json") or "/" in file:
            continue
        for number, record in enumerate(_list(store, file)):
            try:
                paths, ranks = record["generations"], record["ranking"]
                best = [path for path, rank in zip(paths, ranks, strict=True) if rank == min(ranks)]
                best = [posixpath.normpath(path) for path in best]
            except (TypeError, KeyError, ValueError):
                yield _bad_record(file, number)
                continue
            for path in best:
                if path not in seen:
                    seen.add(path)
                    yield _row(look, as_text(path), _path(path), record.get("prompt"))


def _bad_record(file: str, number: int, side: str = "") -> Row:
    problem = f"bad_record: record {number} of {file} is not laid out as its dataset's are"
    return index_row(f"{file}#{number:09d}/{side}", file, None, problem=problem)


def _row(look: _Look, id_: str, path: str, caption: Any) -> Row:
    text = caption_of({"caption": caption})
    file, size = look(path)
    return index_row(id_, file, text, size=size)


def _path(value: str) -> str:
    """A record's path, in a form that every file name can have."""
    return posixpath.normpath(as_text(value))


def _list(store: Store, file: str) -> list[Any]:
    content = _json(store, file)
    if not isinstance(content, list):
        raise InputError(f"{store.path}: {file} must hold a list of records")
    return content


def _json(store: Store, file: str) -> Any:
    if store.size(file) is None:
        raise InputError(f"source.path: there is no {file} in '{store.path}'")
    try:
        with store.open(file) as opened:
            return json.loads(opened.read())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{store.path}: {file} is not sound JSON: {error}") from None

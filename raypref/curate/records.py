"""Images listed by JSON records: a .jsonl index, and the layouts of public datasets.

Paths in records are relative to the record file; they may not lead out of its folder.
"""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from raypref.config import InputError
from raypref.curate.folder import CAPTION_KEYS, caption_of, parse
from raypref.curate.parquet import PATH_COLUMNS
from raypref.curate.place import Place, RemotePlace, scan, sizes
from raypref.rows import Row, index_row

_LINE_BYTES = 2**24  # of one record
_Sizes = Callable[[str], int | None]


def jsonl(place: Place) -> Iterator[Row]:
    """Lines such as `{"file": "a.jpg", "caption": "a dog"}`; an unreadable line is a reject."""
    size = sizes(place)
    for file, _ in place.files():
        if not file.endswith(".jsonl"):
            continue
        try:
            lines = scan(place, file)
        except OSError as error:
            if isinstance(place, RemotePlace):
                raise  # the network: the job goes on when it is started again
            raise InputError(f"{place.path}: {file} cannot be read: {error}") from None
        with lines as opened:
            for number in itertools.count(1):
                line = opened.readline(_LINE_BYTES)
                if not line:
                    break
                if line.strip():
                    yield _line(size, file, number, line)


def hpdv3(place: Place) -> Iterator[Row]:
    """HPDv3's all.json: the images whose model is `real_images`, once each, with their prompt."""
    seen: set[str] = set()
    size = sizes(place)
    for number, record in enumerate(_list(place, "all.json")):
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
                yield _row(size, f"{number:09d}#{stem}", _path(path), record.get("prompt"))


def civitai(place: Place) -> Iterator[Row]:
    """Civitai-top: prompts.json maps file names in images/ to records with a prompt."""
    content = _json(place, "prompts.json")
    if not isinstance(content, dict):
        raise InputError(f"{place.path}: prompts.json must map file names to records")
    size = sizes(place)
    for name in sorted(content):
        prompt = content[name].get("prompt") if isinstance(content[name], dict) else None
        yield _row(size, _text(name), _path(f"images/{name}"), prompt)


def imagereward(place: Place) -> Iterator[Row]:
    """ImageRewardDB: of every record the generations of the best rank."""
    seen: set[str] = set()
    size = sizes(place)
    for file, _ in place.files():
        if not file.endswith(".json") or "/" in file:
            continue
        for number, record in enumerate(_list(place, file)):
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
                    yield _row(size, _text(path), _path(path), record.get("prompt"))


def _line(size: _Sizes, file: str, number: int, line: bytes) -> Row:
    id_ = f"{file}#{number:09d}"
    try:
        record = parse(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        problem = f"bad_encoding: line {number} of {file} is not UTF-8 text"
        return index_row(id_, file, None, problem=problem)
    path = None
    if isinstance(record, dict):
        path = next((record[key] for key in PATH_COLUMNS if key in record), None)
    if not isinstance(path, str):
        wanted = f"a file ({', '.join(PATH_COLUMNS)}) and a caption ({', '.join(CAPTION_KEYS)})"
        problem = f"bad_record: line {number} of {file} is no JSON object with {wanted}"
        return index_row(id_, file, None, problem=problem)
    beside = posixpath.join(posixpath.dirname(file), path)
    return _row(size, id_, _path(beside), caption_of(record))


def _bad_record(file: str, number: int, side: str = "") -> Row:
    problem = f"bad_record: record {number} of {file} is not laid out as its dataset's are"
    return index_row(f"{file}#{number:09d}/{side}", file, None, problem=problem)


def _row(size: _Sizes, id_: str, path: str, caption: Any) -> Row:
    text = caption_of({"caption": caption})
    return index_row(id_, path, text, size=size(path))


def _path(value: str) -> str:
    """A record's path, in a form that every file name can have."""
    return posixpath.normpath(_text(value))


def _text(value: str) -> str:
    """JSON can hold what is no text; that comes escaped."""
    return value.encode("utf-8", "backslashreplace").decode()


def _list(place: Place, file: str) -> list[Any]:
    content = _json(place, file)
    if not isinstance(content, list):
        raise InputError(f"{place.path}: {file} must hold a list of records")
    return content


def _json(place: Place, file: str) -> Any:
    if place.size(file) is None:
        raise InputError(f"source.path: there is no {file} in '{place.path}'")
    try:
        with place.open(file) as opened:
            return json.loads(opened.read())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place.path}: {file} is not sound JSON: {error}") from None

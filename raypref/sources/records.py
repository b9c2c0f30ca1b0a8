"""Records of JSON files, as public datasets list their images."""

from __future__ import annotations

import itertools
import json
import posixpath
from collections.abc import Iterator
from typing import Any

from raypref.core.config import InputError
from raypref.core.rows import Row, index_row
from raypref.sources.base import Pair, Ref
from raypref.sources.captions import as_text, caption_of
from raypref.sources.reading import Look, read
from raypref.sources.store import Store

JSON_BYTES = 2**32  # of a JSON file, which is parsed as a whole


def document(store: Store, file: str) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: there is none, or it is not JSON.
        SourceError: it cannot be read.
    """
    if store.size(file) is None:
        raise InputError(f"source.path: there is no {file} in '{store.path}'")
    try:
        return json.loads(read(store, file, max_bytes=JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{store.path}: {file} is not valid JSON: {error}") from None


def records(store: Store, file: str) -> list[Any]:
    """The records of a JSON file that holds a list.

    Raises:
        InputError: it holds none.
        SourceError: it cannot be read.
    """
    content = document(store, file)
    if not isinstance(content, list):
        raise InputError(f"{store.path}: {file} must hold a list of records")
    return content


def bad_record(file: str, number: int, side: str = "") -> Row:
    """The row of a record that cannot be used."""
    problem = f"bad_record: record {number} of {file} does not have the layout of its dataset"
    return index_row(f"{file}#{number:09d}/{side}", file, None, problem=problem)


def photograph(look: Look, id_: str, path: str, caption: Any) -> Row:
    """The row of a photograph that a record names.

    Args:
        look: finds the file (`reading.lookup`).
        id_: the row's.
        path: relative to the store.
        caption: what the record has for one.
    """
    text = caption_of({"caption": caption})
    file, size = look(path)
    return index_row(id_, file, text, size=size)


def path_of(value: str) -> str:
    """A record's path, in a form that every file name can have."""
    return posixpath.normpath(as_text(value))


def ranked(record: Any, paths: str, ranks: str) -> Iterator[Pair]:
    """The pairs of a record that ranks its images; of equal ranks there is none.

    Args:
        record: with a `prompt`.
        paths: key of the list of images.
        ranks: key of the list of their ranks; lower is better.

    Raises:
        KeyError, TypeError, ValueError: the record is not laid out so.
    """
    images = list(zip(record[paths], record[ranks], strict=True))
    for (one, own), (two, other) in itertools.combinations(images, 2):
        if own != other:
            yield Pair(prompt_of(record), image_of(one), image_of(two), float(own < other))


def prompt_of(record: Any) -> str:
    """A record's prompt. KeyError, TypeError or ValueError where it is no text."""
    prompt = record["prompt"]
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is {type(prompt).__name__}, not text")
    prompt.encode()  # JSON can hold half a character
    return prompt


def image_of(path: Any) -> Ref:
    """The image at a record's path. TypeError where that is no text."""
    if not isinstance(path, str):
        raise TypeError(f"a path is {type(path).__name__}, not text")
    return Ref(as_text(path))

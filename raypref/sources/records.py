"""Records of JSON files, as public datasets list their images."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import posixpath
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

from raypref.core.config import InputError
from raypref.core.rows import Row, index_row
from raypref.sources.base import Pair, Ref
from raypref.sources.captions import as_text, caption_of
from raypref.sources.labels import bad_prompt, model_of, no_pair
from raypref.sources.reading import Look, pointer, read, unpacked
from raypref.sources.store import RemoteStore, SourceError, Store

JSON_BYTES = 2**32  # of a JSON file that is parsed as a whole
JSON_CHARACTERS = 2**24  # of a record of a list, which is parsed record by record
CHUNK = 2**20
MOST = 64  # images of a prompt that are compared; published rankings have up to 9
FORM = (KeyError, TypeError, ValueError, AttributeError)  # of a record of another layout
_OF_NUMBERS = "0123456789.eE+-"  # "" is in it: the end of what was read
_SPACE = re.compile(r"[ \t\n\r]*")


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


def records(store: Store, file: str) -> Iterator[Any]:
    """The records of a JSON file that holds a list, one at a time: the file may be large.

    Args:
        store: where it lies.
        file: its name; one that ends in .gz is unpacked.

    Raises:
        InputError: there is none, or it holds no list of records.
        SourceError: it cannot be read, or a record takes too many characters.
    """
    if store.size(file) is None:
        raise InputError(f"source.path: there is no {file} in '{store.path}'")
    count = 0
    try:
        with unpacked(store, file) as opened:
            if what := pointer(opened.peek(64)):
                raise SourceError("unreadable_file", f"{file} is {what}")
            encoding = json.detect_encoding(opened.peek(4)[:4])
            text = io.TextIOWrapper(opened, encoding=encoding, errors="surrogatepass")
            for record in _parsed(text, file):
                yield record
                count += 1
    except NoListError:
        raise InputError(f"{store.path}: {file} must hold a list of records") from None
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(store, RemoteStore) and not isinstance(error, gzip.BadGzipFile):
            raise
        raise SourceError("unreadable_file", f"{file}: {error}") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        said = f"{file} is not valid JSON: {error}" + (f", after record {count}" if count else "")
        raise InputError(f"{store.path}: {said}") from None


class NoListError(Exception):
    """A JSON file holds something else than a list."""


def _parsed(text: TextIO, file: str) -> Iterator[Any]:
    """The elements of a JSON list.

    Raises:
        ValueError: it is not JSON.
        NoListError: it is JSON of another kind.
    """
    decode = json.JSONDecoder().raw_decode
    buffer, position, ended, more = "", 0, False, CHUNK

    def skip() -> str:
        """The next character that is no space, "" at the end; the buffer then begins there."""
        nonlocal buffer, position, ended
        while True:
            position = _SPACE.match(buffer, position).end()  # type: ignore[union-attr]
            if position < len(buffer) or ended:
                return buffer[position : position + 1]
            buffer, position = text.read(CHUNK), 0
            ended = not buffer

    start = skip()
    if start != "[":
        json.loads(buffer[position:] + text.read(JSON_CHARACTERS))
        raise NoListError
    position += 1
    between = skip()
    if between == "]":
        position += 1
    while between != "]":
        skip()
        while True:
            try:
                element, end = decode(buffer, position)
                if ended or buffer[end : end + 1] not in _OF_NUMBERS:  # else it may go on
                    break
            except ValueError:
                if ended:
                    raise
                if len(buffer) - position > JSON_CHARACTERS:
                    said = f"{file} holds a record of more than {JSON_CHARACTERS} characters"
                    raise SourceError("too_many_bytes", said) from None
            added = text.read(more)
            ended, more = not added, 2 * more
            buffer, position = buffer[position:] + added, 0
        yield element
        position, more = end, CHUNK
        between = skip()
        if between not in ("]", ","):
            raise ValueError("a comma or the end of the list is missing")
        position += 1
    if skip():
        raise ValueError("something follows the list")


def files_with(store: Store, usual: str, keys: tuple[str, ...]) -> list[str]:
    """The JSON files that hold the records of a dataset.

    Args:
        store: where it lies; a file that the person named is the one.
        usual: the name that it has as published.
        keys: one of these is a key of the first record, where the file has another name.
    """
    if store.only or store.size(usual) is not None:
        return [store.only or usual]
    found = []
    for file in store.files():
        if "/" not in file.name and file.name.endswith(".json"):
            with suppress(InputError, SourceError):
                first = next(records(store, file.name), None)
                if isinstance(first, dict) and not first.keys().isdisjoint(keys):
                    found.append(file.name)
    return found or [usual]


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


def ranked(
    record: Any, paths: str, ranks: str, *, id_: str, where: str, folder: str = ""
) -> Iterator[Pair]:
    """Each two images of a record that ranks its images; equal ranks are a tie.

    What a record has beyond `MOST` images is one entry with a problem.

    Args:
        record: with a `prompt`, and perhaps `models`, a list of the generators.
        paths: key of the list of images.
        ranks: key of the list of their ranks; lower is better.
        id_: of the record.
        where: the record, for people.
        folder: that paths are relative to, relative to the store.
    """
    try:
        prompt = prompt_of(record)
        images = [image_of(path, folder) for path in record[paths]]
        levels = [float(rank) for rank in record[ranks]]
        models = [model_of(name) for name in record.get("models") or [None] * len(images)]
        rows = list(enumerate(zip(images, levels, models, strict=True)))
    except FORM as error:
        yield no_pair(id_, misshapen(where, error))
        return
    pairs = itertools.combinations(rows[:MOST], 2)
    for (i, (one, rank, model)), (j, (two, other, other_model)) in pairs:
        label = 0.5 if rank == other else float(rank < other)
        pair = Pair(prompt, one, two, label, None, model, other_model, id=f"{id_}/{i}-{j}")
        yield usable(pair, where)
    if len(rows) > MOST:
        yield too_many(id_, where, len(rows))


def too_many(id_: str, where: str, count: int) -> Pair:
    """The entry that stands for the images of a prompt beyond `MOST`."""
    said = f"bad_record: {where} has {count} images; the {count - MOST} after the first {MOST} are"
    return no_pair(f"{id_}/beyond", f"{said} left out")


def usable(pair: Pair, where: str) -> Pair:
    """The pair, with its problem where its prompt cannot be used or it has one image twice."""
    if problem := bad_prompt(pair.prompt, where):
        return pair._replace(problem=problem)
    if pair.first == pair.second:
        return pair._replace(problem=f"same_image: both images of {where} are {pair.first.file}")
    return pair


def misshapen(where: str, error: Exception) -> str:
    """The problem of a record that is not laid out as its dataset."""
    said = as_text(f"{type(error).__name__}: {error}")
    return f"bad_record: {where} does not have the layout of its dataset ({said})"


def prompt_of(record: Any) -> str:
    """A record's prompt. KeyError, TypeError or ValueError where it is no text."""
    prompt = record["prompt"]
    if not isinstance(prompt, str):
        raise TypeError(f"a prompt is {type(prompt).__name__}, not text")
    prompt.encode()  # JSON can hold half a character
    return prompt


def image_of(path: Any, folder: str = "") -> Ref:
    """The image at a record's path in a folder. TypeError where that is no text."""
    if not isinstance(path, str):
        raise TypeError(f"a path is {type(path).__name__}, not text")
    return Ref(posixpath.join(folder, as_text(path)))

"""A folder of images with captions.csv, or with a .txt or .json file beside each image."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Container, Iterator
from typing import Any

from raypref.config import InputError
from raypref.curate.place import Place, RemotePlace, SourceError, read, sizes
from raypref.rows import Row, index_row

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif"),
        *(".tiff", ".heic", ".heif", ".avif", ".jxl"),
    )
)
CAPTION_KEYS = ("caption", "prompt", "text")
SIDECAR_BYTES = 2**20  # a caption file larger than this is none
TABLE = "captions.csv"


def entries(place: Place) -> Iterator[Row]:
    """What the folder lists, sorted by id."""
    there = dict(place.files())
    elsewhere = sizes(place)
    rows: list[Row] = []
    listed: Counter[str] = Counter()
    if TABLE in there:
        for file, caption in _read_table(place):
            # One photograph may have several captions: each is an input of its own.
            # No file's name contains "//", so the id is no other file's.
            suffix = f"//{listed[file]}" if listed[file] else ""
            listed[file] += 1
            size = there[file] if file in there else elsewhere(file)
            rows.append(index_row(f"{file}{suffix}", file, caption, size=size))
    for file, size in there.items():
        if posixpath.splitext(file)[1].lower() in IMAGE_SUFFIXES and file not in listed:
            text, problem = _sidecar(place, file, there)
            rows.append(index_row(file, file, text, size=size, problem=problem))
    yield from sorted(rows, key=lambda row: row["id"])


def caption_in(data: bytes, name: str) -> tuple[str | None, str | None]:
    """The caption in a sidecar, and what is wrong with it: one of the two at most.

    Args:
        data: its bytes.
        name: of the file; tells text from JSON.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        readable = name.encode("utf-8", "backslashreplace").decode()
        return None, f"bad_encoding: {readable} is not UTF-8 text (byte {error.start})"
    return (text.strip() if name.lower().endswith(".txt") else caption_of(parse(text))), None


def caption_of(content: Any) -> str | None:
    """The caption that a parsed JSON object holds; None where there is none."""
    if not isinstance(content, dict):
        return None
    text: Any = next((content[key] for key in CAPTION_KEYS if key in content), None)
    try:
        text.encode()  # JSON can hold what is no text
    except (UnicodeEncodeError, AttributeError):
        return None
    return str(text).strip()


def parse(text: str) -> Any:
    """JSON, or None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_table(place: Place) -> Iterator[tuple[str, str]]:
    table = f"{place.path.rstrip('/')}/{TABLE}"
    try:
        with place.open(TABLE) as file:
            text = file.read().decode("utf-8-sig")
    except OSError as error:
        if isinstance(place, RemotePlace):
            raise  # the network: the job goes on when it is started again
        raise InputError(f"{table} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text: {error}") from None
    # A quote left open would silently swallow the lines after it; strict parsing reports it.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = reader.fieldnames or []
        if "file" not in columns or "caption" not in columns:
            raise InputError(
                f"{table}: the first line must name the columns file and caption, it is {columns}"
            )
        for record in reader:
            if None in record:
                raise InputError(
                    f"{table}, line {reader.line_num}: more fields than the first line has; a "
                    "caption with a comma must stand in double quotes"
                )
            if record["file"] or record["caption"]:
                yield posixpath.normpath(record["file"] or ""), record["caption"] or ""
    except csv.Error as error:
        # The reader counts whole records: the broken one begins after them.
        raise InputError(f"{table}, line {reader.line_num + 1}: {error}") from None


def _sidecar(place: Place, photo: str, there: Container[str]) -> tuple[str | None, str | None]:
    """The caption beside an image, and what is wrong with the file: neither where there is none."""
    stem = posixpath.splitext(photo)[0]
    for name in (f"{stem}.txt", f"{stem}.json"):
        if name in there:
            try:
                return caption_in(read(place, name, max_bytes=SIDECAR_BYTES), name)
            except SourceError as error:
                return None, f"{error.reason}: {error.message}"
    return None, None

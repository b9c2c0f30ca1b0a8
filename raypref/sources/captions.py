"""Captions in text beside photographs: a file of their own, a line of a table, a key of JSON."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from raypref.sources.reading import csv_fault, pointer, scan
from raypref.sources.store import RemoteStore, SourceError, Store

CAPTION_KEYS = ("caption", "prompt", "text")
PATH_KEYS = (
    *("path", "file", "file_name", "image_path"),
    *("image", "img", "filename", "file_path", "filepath"),
)
ENDS = (".txt", ".json", ".caption")  # of a file beside a photograph
TABLE = "captions.csv"
METADATA = ("metadata.csv", "metadata.jsonl")  # Hugging Face's ImageFolder has one per folder
SIDECAR_BYTES = 2**20  # a caption file larger than this is none
LINE_BYTES = 2**24  # of one record of a .jsonl file


class Columns(NamedTuple):
    """What the person said of columns or keys; names that are empty are looked for."""

    image: str = ""
    caption: str = ""
    pool: str = "winners"  # `source.pool`: which images of people's comparisons are listed

    @property
    def captions(self) -> tuple[str, ...]:
        """Where to look for a caption."""
        return (self.caption,) if self.caption else CAPTION_KEYS

    @property
    def paths(self) -> tuple[str, ...]:
        """Where to look for a photograph's path."""
        return (self.image,) if self.image else PATH_KEYS


class Record(NamedTuple):
    """A line of a table: a photograph and its caption, or what is wrong with the line."""

    number: int
    file: str | None
    caption: str | None
    problem: str | None = None
    again: int = 0  # of a list of captions, which


ANY = Columns()


def caption_in(data: bytes, name: str, columns: Columns = ANY) -> tuple[str | None, str | None]:
    """The caption in a sidecar, and what is wrong with it: one of the two at most.

    Args:
        data: its bytes.
        name: of the file; tells text from JSON.
        columns: the key to take.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        readable = name.encode("utf-8", "backslashreplace").decode()
        return None, f"bad_encoding: {readable} is not UTF-8 text (byte {error.start})"
    if name.lower().endswith(".json"):
        return caption_of(parse_captions(text), columns), None
    return text.strip(), None


def caption_of(content: Any, columns: Columns = ANY) -> str | None:
    """The caption that a parsed JSON object holds; None where there is none."""
    if not isinstance(content, dict):
        return None
    text: Any = next((content[key] for key in columns.captions if key in content), None)
    try:
        text.encode()  # JSON can hold what is no text
    except (UnicodeEncodeError, AttributeError):
        return None
    return str(text).strip()


def parse_captions(text: str) -> Any:
    """JSON, or None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_text(value: str) -> str:
    """JSON can hold what is no text; that comes escaped."""
    return value.encode("utf-8", "backslashreplace").decode()


def sidecar_names(photo: str) -> list[str]:
    """Files that may hold a photograph's caption, the first of them first."""
    return [base + end for base in (posixpath.splitext(photo)[0], photo) for end in ENDS]


def first_caption(found: Iterable[tuple[str | None, str | None]]) -> tuple[str | None, str | None]:
    """Of what sidecars hold, the first caption or problem: an empty file is no last word."""
    empty: list[tuple[str | None, str | None]] = []
    for caption, problem in found:
        if caption or problem:
            return caption, problem
        empty.append((caption, problem))
    return empty[0] if empty else (None, None)


def csv_records(store: Store, table: str, columns: Columns = ANY) -> Iterator[Record]:
    """Lines of a table with a header.

    Raises:
        SourceError: it is no such table (`bad_table`), or a line is broken; says the fix.
        OSError: an object store failed.
    """
    try:
        with store.open(table) as file:
            data = file.read()
            text = data.decode("utf-8-sig")
    except OSError as error:
        if isinstance(store, RemoteStore):
            raise  # a network failure: the same command resumes
        raise SourceError("unreadable_file", f"{table} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        said = f"{table} is not UTF-8 text, save it as such: {error}"
        raise SourceError("unreadable_file", said) from None
    head = text.partition("\n")[0]
    between = next((mark for mark in ",;\t" if mark in head), ",")  # as spreadsheets of any country
    # A quote left open would silently swallow the lines after it; strict parsing reports it.
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=between)
    try:
        names = list(reader.fieldnames or [])
        path, caption = _column(names, columns.paths), _column(names, columns.captions)
        if path is None or caption is None:
            if what := pointer(data):
                raise SourceError("unreadable_file", f"{table} is {what}")
            said = f"{table}: the first line must name the columns file and caption, it is {names}"
            said += "; source.image_column and source.caption_column name others"
            raise SourceError("bad_table", said)
        for record in reader:
            if None in record:
                raise SourceError(
                    "unreadable_file",
                    f"{table}, line {reader.line_num}: more fields than the first line has; a "
                    "caption with a comma must stand in double quotes",
                )
            if record[path] or record[caption]:
                yield Record(reader.line_num, record[path] or "", record[caption] or "")
    except csv.Error as error:
        # The reader counts whole records: the broken one begins after them.
        said = f"{table}, line {reader.line_num + 1}: {csv_fault(error)}"
        raise SourceError("unreadable_file", said) from None


def _column(names: list[str], wanted: Iterable[str]) -> str | None:
    """The first wanted name in a header; letter case and spaces around it count last."""
    alike = {name.strip().lower(): name for name in reversed(names)}
    exact = next((name for name in wanted if name in names), None)
    return exact or next((alike[name.lower()] for name in wanted if name.lower() in alike), None)


def json_records(store: Store, file: str, columns: Columns = ANY) -> Iterator[Record]:
    """Lines of a .jsonl file, such as `{"file": "a.jpg", "caption": "a dog"}`.

    Raises:
        SourceError: it cannot be read.
        OSError: an object store failed.
    """
    try:
        lines = scan(store, file)
    except OSError as error:
        if isinstance(store, RemoteStore):
            raise  # a network failure: the same command resumes
        raise SourceError("unreadable_file", f"{file} cannot be read: {error}") from None
    with lines as opened:
        number = 0
        while line := opened.readline(LINE_BYTES):
            number += 1
            if number == 1 and (what := pointer(line)):
                raise SourceError("unreadable_file", f"{file} is {what}")
            if line.strip():
                yield from _records(file, number, line, columns)


def _records(file: str, number: int, line: bytes, columns: Columns) -> Iterator[Record]:
    try:
        record = parse_captions(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        problem = f"bad_encoding: line {number} of {file} is not UTF-8 text"
        yield Record(number, None, None, problem)
        return
    path = None
    if isinstance(record, dict):
        path = next((record[key] for key in columns.paths if key in record), None)
    if not isinstance(path, str):
        # The first names only: the digest of a source counts this text, and it must not change.
        paths, captions = ", ".join(columns.paths[:4]), ", ".join(columns.captions)
        wanted = f"a file ({paths}) and a caption ({captions})"
        problem = f"bad_record: line {number} of {file} is no JSON object with {wanted}"
        yield Record(number, None, None, problem)
        return
    for again, caption in enumerate(_captions_of(record, columns)):
        yield Record(number, as_text(path), caption, again=again)


def _captions_of(record: dict[str, Any], columns: Columns) -> list[str | None]:
    """Each caption of a list, or the only one; one None where there is none."""
    found = next((record[key] for key in columns.captions if key in record), None)
    texts = found if isinstance(found, list) else [found]
    captions = [caption_of({"caption": text}) for text in texts]
    return [caption for caption in captions if caption is not None] or [None]


def is_index(store: Store, file: str, columns: Columns = ANY) -> bool:
    """Whether the first line of a .jsonl file names a photograph and its caption.

    Raises:
        SourceError: it cannot be read.
    """
    first = next(json_records(store, file, columns), None)
    return first is not None and first.file is not None and bool(first.caption)

"""Tables of labels: the rows of a CSV, TSV, JSON, JSONL, Parquet or Arrow file, one at a time.

A cell that holds an image is given as a reference; its bytes are not read.
"""

from __future__ import annotations

import csv
import itertools
import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

from raypref.core.config import InputError
from raypref.sources import arrow, cells
from raypref.sources.base import Ref
from raypref.sources.reading import PACKED, csv_fault, shown, text_lines
from raypref.sources.records import records
from raypref.sources.store import Store

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", arrow.SUFFIX)
_CACHE = "cache-"  # `datasets` keeps intermediate results beside the data that it saved
_FIRST = 100  # lines of JSON whose keys are looked at: an optional key may come late


class TableRow(NamedTuple):
    """A row of a table, or what is wrong with it."""

    number: int  # of the row, or of the line in a text file
    where: str  # the same for people
    values: Mapping[str, Any]
    problem: str = ""


def suffix_of(file: str) -> str:
    """The end of a file's name that says its form, in lower case and without .gz."""
    return posixpath.splitext(file.lower().removesuffix(PACKED))[1]


def table_files(store: Store) -> Iterator[str]:
    """The files of a store that can be tables of labels."""
    for file in store.files():
        name = posixpath.basename(file.name)
        if suffix_of(name) in SUFFIXES and not name.startswith(_CACHE):
            yield file.name


def columns_of(store: Store, file: str) -> list[str]:
    """The names of a table's columns, or the keys of its first records.

    Raises:
        InputError: it is a text file that is no table.
        SourceError: it cannot be read.
    """
    form = suffix_of(file)
    if form in (".parquet", arrow.SUFFIX):
        return list(_schema(store, file).names)
    if form in (".csv", ".tsv"):
        return _header(store, file, _csv(store, file))
    found = itertools.islice(lines(store, file, []), _FIRST)
    return list(dict.fromkeys(name for line in found for name in line.values))


def lines(store: Store, file: str, columns: list[str]) -> Iterator[TableRow]:
    """The rows of a table.

    Args:
        store: where it lies.
        file: its name; .csv.gz, .tsv.gz, .json.gz and .jsonl.gz are unpacked.
        columns: those that are wanted, which must be there; text files give all.

    Raises:
        InputError: a text file breaks off in the middle of a row, or a column holds no labels.
        SourceError: it cannot be read.
    """
    form = suffix_of(file)
    if form in (".parquet", arrow.SUFFIX):
        yield from _rows(store, file, columns)
    elif form in (".csv", ".tsv"):
        yield from _csv_lines(store, file)
    elif form == ".json" or _is_list(store, file):
        for number, record in enumerate(records(store, file)):
            yield _of_json(number, f"record {number} of {file}", record)
    else:
        for number, text in enumerate(text_lines(store, file, errors="surrogateescape"), start=1):
            if text.strip():
                yield _json_line(number, f"line {number} of {file}", text)


def _schema(store: Store, file: str) -> pa.Schema:
    if suffix_of(file) == arrow.SUFFIX:
        return arrow.saved_schema(store, file)
    return cells.schema_of(store, file)


def _rows(store: Store, file: str, columns: list[str]) -> Iterator[TableRow]:
    schema = _schema(store, file)
    held = {name for name in columns if cells.holds_bytes(schema.field(name).type)}
    for name in columns:
        kind = cells.entry_type(schema.field(name).type)
        if name not in held and pa.types.is_nested(kind):
            raise InputError(
                f"{shown(store, file)}: the column {name} holds {kind}; it must hold text, "
                "numbers, or images as bytes"
            )
    read = [name for name in columns if name not in held]
    # Without a column nothing would say how many rows there are.
    wanted = read or columns[:1]
    rows_of = arrow.saved_rows if suffix_of(file) == arrow.SUFFIX else cells.rows_of
    for number, found in enumerate(rows_of(store, file, wanted)):
        values = {name: cells.value(cell) for name, cell in zip(read, found, strict=False)}
        values |= {name: Ref(file, number, name) for name in held}
        yield TableRow(number, f"row {number} of {file}", values)


def _csv(store: Store, file: str) -> Iterator[list[str]]:
    """The rows of a table with a header. csv.Error where a row is broken."""
    text = text_lines(store, file, newline="", errors="surrogateescape")
    head = next(text, "")
    between = next((mark for mark in ",;\t" if mark in head), ",")  # as spreadsheets of any country
    if suffix_of(file) == ".tsv":
        between = "\t"
    # A quote left open would silently swallow the rows after it; strict parsing reports it.
    return csv.reader(itertools.chain([head], text), strict=True, delimiter=between)


def _header(store: Store, file: str, rows: Iterator[list[str]]) -> list[str]:
    try:
        names = [name.strip() for name in next(rows, [])]
    except csv.Error as error:
        raise InputError(f"{shown(store, file)}, line 1: {csv_fault(error)}") from None
    if any("\0" in name or not _is_text(name) for name in names):
        raise InputError(f"{shown(store, file)} is not UTF-8 text; save it as such")
    return names


def _csv_lines(store: Store, file: str) -> Iterator[TableRow]:
    rows = _csv(store, file)
    names = _header(store, file, rows)
    number = rows.line_num  # type: ignore[attr-defined]
    try:
        for row in rows:
            number = rows.line_num  # type: ignore[attr-defined]
            where = f"line {number} of {file}"
            values = dict(zip(names, row, strict=False))
            if not any(row):
                continue
            if not all(map(_is_text, row)):
                yield TableRow(number, where, {}, f"bad_encoding: {where} is not UTF-8 text")
            elif len(row) > len(names) and any(row[len(names) :]):
                said = f"{where} has {len(row)} fields, the first line {len(names)}; a prompt with "
                said += "a comma must stand in double quotes"
                yield TableRow(number, where, {}, f"bad_record: {said}")
            else:
                yield TableRow(number, where, values)
    except csv.Error as error:
        said = f"{shown(store, file)}, line {number + 1}: {csv_fault(error)}"
        raise InputError(said) from None


def _is_list(store: Store, file: str) -> bool:
    """Whether a .jsonl file holds one JSON list instead of a record per line."""
    for line in text_lines(store, file, errors="surrogateescape"):
        if start := line.strip():
            return start.startswith("[")
    return False


def _json_line(number: int, where: str, text: str) -> TableRow:
    if not _is_text(text):
        return TableRow(number, where, {}, f"bad_encoding: {where} is not UTF-8 text")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return TableRow(number, where, {}, f"bad_record: {where} is not JSON")
    return _of_json(number, where, record)


def _of_json(number: int, where: str, record: Any) -> TableRow:
    if not isinstance(record, dict):
        return TableRow(number, where, {}, f"bad_record: {where} is no JSON object")
    return TableRow(number, where, record)


def _is_text(text: str) -> bool:
    """Whether a text is UTF-8: other bytes come escaped, JSON holds half characters."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Arrow files as `datasets` saves them: columns of all rows, or one cell.

They are read batch by batch, from the beginning: such a file has no index. `save_to_disk` writes
batches of 100 to 1000 rows. What a batch unpacks to is known before it is unpacked.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from raypref.sources.arrow_bodies import CheckedStream
from raypref.sources.cells import value
from raypref.sources.reading import damage, scan
from raypref.sources.store import RemoteStore, SourceError, Store

SUFFIX = ".arrow"
CURSORS = 4  # two images of a row, of two blocks at a time


def saved_schema(store: Store, file: str) -> pa.Schema:
    """The columns of a file.

    Raises:
        SourceError: it is not a sound Arrow stream.
    """
    with _sound(store, file), scan(store, file) as opened, _whole(opened, file) as stream:
        return stream.schema


def saved_rows(store: Store, file: str, columns: list[str]) -> Iterator[tuple[pa.Scalar, ...]]:
    """The cells of some columns, row by row.

    Raises:
        SourceError: it is not a sound Arrow stream.
    """
    with _sound(store, file), scan(store, file) as opened, _stream(opened, file, columns) as stream:
        for batch in stream:
            batch.validate(full=True)  # what it says of itself may be wrong
            yield from zip(*(batch[column] for column in columns), strict=True)


def cell(store: Store, file: str, size: int, column: str, row: int) -> Any:
    """The value of one cell; rows in order are read in one pass.

    Raises:
        SourceError: there is no such cell, or the file is damaged.
    """
    key = (store, file, size, column)
    with _lock:
        able = [cursor for cursor in _cursors if cursor.key == key and cursor.first <= row]
        cursor = max(able, key=lambda cursor: cursor.first, default=None)
        if cursor is not None:
            _cursors.remove(cursor)
    cursor = cursor or _Cursor(store, file, size, column)
    with _sound(store, file):
        found = cursor.at(row)
    with _lock:
        _cursors.append(cursor)
        dropped = _cursors[:-CURSORS]
        del _cursors[:-CURSORS]
    for old in dropped:
        old.opened.close()
    return found


class _Cursor:
    """Reads one column of a file from its beginning on, a batch in memory."""

    def __init__(self, store: Store, file: str, size: int, column: str) -> None:
        self.key = (store, file, size, column)
        self.first = 0  # row of the batch in memory
        self.batch: pa.RecordBatch | None = None
        self.opened = scan(store, file)
        with _sound(store, file):
            self.batches = iter(_stream(self.opened, file, [column]))

    def at(self, row: int) -> Any:
        """The value in a row of this batch or a later one."""
        while self.batch is None or row >= self.first + self.batch.num_rows:
            self.first += 0 if self.batch is None else self.batch.num_rows
            self.batch = next(self.batches, None)
            if self.batch is None:
                raise SourceError("no_image", f"{self.key[1]} has no row {row}")
            self.batch.validate(full=True)
        return value(self.batch[self.key[3]][row - self.first])


_cursors: list[_Cursor] = []  # none of them in use; the one used last is at the end
_lock = threading.Lock()


def _whole(opened: io.BufferedReader, file: str) -> pa.RecordBatchReader:
    """A reader of all columns."""
    return pa.ipc.open_stream(CheckedStream(opened, file))


def _stream(opened: io.BufferedReader, file: str, columns: list[str]) -> pa.RecordBatchReader:
    """A reader of some columns; others are not unpacked."""
    start = opened.tell()
    with _whole(opened, file) as whole:
        names = whole.schema.names
    opened.seek(start)
    missing = [column for column in columns if column not in names]
    if missing:
        raise ValueError(f"no column {missing[0]}")
    fields = [names.index(column) for column in columns]
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    return pa.ipc.open_stream(CheckedStream(opened, file), options=options)


@contextmanager
def _sound(store: Store, file: str) -> Iterator[None]:
    """Within, what a file that is no Arrow stream raises is a SourceError that says so."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError, MemoryError) as error:
        if isinstance(store, RemoteStore) and isinstance(error, OSError):
            raise  # a network failure: the same command resumes
        raise damage(store, file, f"{file} is not a sound Arrow stream: {error}") from None

"""Parquet files from strangers: columns of all rows, or one cell, and never more than that.

A file of megabytes can unpack to gigabytes, or name one value for every row.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.core.config import InputError
from raypref.sources.reading import damage
from raypref.sources.store import RemoteStore, SourceError, Store

BATCH = 4096  # rows in memory at once
LISTS = 64  # rows with lists in memory at once: these are unpacked
GROUP_BYTES = 2**32  # of what is read of a row group: a small file can unpack to anything
PACKED = 20  # of images a larger group is read too, if it does not shrink so: photographs do not
BUFFER = 2**22  # bytes of a column that are fetched at once
CURSORS = 4  # two images of a row, of two blocks at a time
KEPT_BYTES = 2**28  # of a column of a row group: a smaller one stays, for rows in any order
_FIX = f"more than {GROUP_BYTES}; write it anew with row_group_size=100"


def files(store: Store) -> Iterator[str]:
    """The Parquet files of a store; a file that the person named is one whatever its name."""
    names = (file.name for file in store.files())
    return (name for name in names if name.endswith(".parquet") or name == store.only)


def row_id(file: str, row: int) -> str:
    """The id of a row of a file."""
    return f"{file}#{row:09d}"


def schema_of(store: Store, file: str) -> pa.Schema:
    """The columns of a file.

    Raises:
        SourceError: it is not a sound Parquet file.
    """
    with _sound(store, file), store.open(file) as opened:
        return pq.read_schema(opened)


def rows_of(store: Store, file: str, columns: list[str]) -> Iterator[tuple[pa.Scalar, ...]]:
    """The cells of some columns, row by row.

    Raises:
        SourceError: it is not a sound Parquet file, or a row group takes too many bytes.
    """
    with _sound(store, file), store.open(file) as opened:
        schema = pq.read_schema(opened)
        nested = [name for name in columns if pa.types.is_nested(schema.field(name).type)]
        # As the file holds them: what it has once, and names for each row, is once in memory.
        once = [name for name in columns if name not in nested]
        table = pq.ParquetFile(opened, read_dictionary=once)
        for group in map(table.metadata.row_group, range(table.num_row_groups)):
            if (unpacked := _unpacked(group, columns)) > GROUP_BYTES:
                said = f"{file}: the captions of a row group take {unpacked} bytes, {_FIX}"
                raise SourceError("too_many_bytes", said)
        for batch in table.iter_batches(LISTS if nested else BATCH, columns=columns):
            yield from zip(*(batch[column] for column in columns), strict=True)


def pick(columns: list[str], names: tuple[str, ...], file: str, what: str) -> str:
    """The first of some names that a file has as a column.

    Args:
        columns: what the file has.
        names: what is looked for.
        file: its name, for errors.
        what: the column is for: `image`, `caption` or a name.

    Raises:
        InputError: the file has none of them, or one twice.
    """
    found = [name for name in names if name in columns]
    if not found:
        raise InputError(
            f"{file}: no {what} column; looked for {', '.join(names)}, found {', '.join(columns)}"
            + (f"; source.{what}_column names one" if what in ("image", "caption") else "")
        )
    if columns.count(found[0]) > 1:
        raise InputError(
            f"{file}: there are {columns.count(found[0])} columns {found[0]}; rename one"
        )
    return found[0]


def value(cell: pa.Scalar) -> Any:
    """A cell's value; None for what is not UTF-8 though its type is text."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def text(cell: pa.Scalar) -> str | None:
    """A cell's text, or None for what is none."""
    found = value(cell)
    return found if isinstance(found, str) else None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def entry_type(kind: pa.DataType) -> pa.DataType:
    """What a dictionary's entries are."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    plain = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return plain or pa.types.is_fixed_size_list(kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column can hold images: bytes, or Hugging Face's struct of bytes and path."""
    kind = entry_type(kind)
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    plain = plain or kind == pa.binary_view() or pa.types.is_fixed_size_binary(kind)
    return plain or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def image(store: Store, file: str, column: str, row: int, *, max_bytes: int) -> bytes:
    """One row's image. Of its row group only this column is read, a row at a time.

    After an error in the middle of a row group its later rows fail too or are right: none is ever
    another row's image.

    Raises:
        SourceError: there is no such image, it is too large, or the file is damaged.
        OSError: an object store failed.
    """
    size = store.size(file)
    if size is None:
        raise SourceError("missing_file", f"there is no file {file}")
    try:
        found = _cell(store, file, size, column, row)
    except (OSError, KeyError, pa.ArrowException) as error:
        if isinstance(store, RemoteStore) and isinstance(error, OSError):
            raise  # a network failure: the same command resumes
        raise SourceError("unreadable_file", f"{file}: {error}") from None
    return image_in(found, file, row, max_bytes=max_bytes)


def image_in(found: Any, file: str, row: int, *, max_bytes: int) -> bytes:
    """The image that a cell's value is or holds. SourceError where it holds none."""
    # Hugging Face's image struct may hold a path instead of bytes: never followed, a foreign file
    # could then name any file of this machine.
    data = found.get("bytes") if isinstance(found, dict) else found
    if not isinstance(data, bytes):
        raise SourceError("no_image", f"{file}, row {row} holds no image bytes")
    if len(data) > max_bytes:
        raise SourceError("too_many_bytes", f"{len(data)} bytes, more than {max_bytes}")
    return data


def _cell(store: Store, file: str, size: int, column: str, row: int) -> Any:
    starts, sizes = _groups(store, file, size, column)
    if not 0 <= row < starts[-1]:
        raise SourceError("no_image", f"{file} has no row {row}")
    group = bisect.bisect_right(starts, row) - 1
    packed, unpacked = sizes[group]
    if unpacked > max(GROUP_BYTES, PACKED * packed):
        said = f"row group {group} unpacks from {packed} bytes to {unpacked}, {_FIX}"
        raise SourceError("too_many_bytes", f"{file}: {said}")
    return _read((store, file, size, column, group), row - starts[group])


@lru_cache(maxsize=64)
def _groups(
    store: Store, file: str, size: int, column: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """The first row of each row group and the number of rows; its images' bytes, also unpacked."""
    del size  # part of the key: a file written anew is read anew
    with store.open(file) as opened:
        metadata = pq.read_metadata(opened)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    starts = list(itertools.accumulate((group.num_rows for group in groups), initial=0))
    return starts, [(_packed(group, [column]), _unpacked(group, [column])) for group in groups]


def _packed(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """Bytes that some columns take in the file."""
    return sum(chunk.total_compressed_size for chunk in _chunks(group, columns))


def _unpacked(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """Bytes of some columns, of what a dictionary holds once."""
    return sum(chunk.total_uncompressed_size for chunk in _chunks(group, columns))


def _chunks(group: pq.RowGroupMetaData, columns: list[str]) -> list[pq.ColumnChunkMetaData]:
    chunks = map(group.column, range(group.num_columns))
    return [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]


_Key = tuple[Store, str, int, str, int]  # store, file, its bytes, column, row group


class _Cursor:
    """Reads one column of one row group from its beginning on."""

    def __init__(self, key: _Key) -> None:
        store, file, _, column, group = key
        self.key, self.column = key, column
        self.last = -1  # the row that was read last
        self.value: Any = None  # there
        self.kept: list[Any] | None = []  # those up to it; None once they take too many bytes
        self.kept_bytes = 0
        self.opened: IO[bytes] = store.open(file)
        # By default it reads all of the column ahead, whatever the buffer.
        table = pq.ParquetFile(self.opened, buffer_size=BUFFER, pre_buffer=False)
        self.rows = table.iter_batches(1, row_groups=[group], columns=[column])

    def at(self, row: int) -> Any:
        """The value in a row that this cursor can read."""
        if self.kept is not None and row <= self.last:
            return self.kept[row]
        for batch in itertools.islice(self.rows, row - self.last):
            self.last += 1
            self.kept_bytes += batch.nbytes
            if self.kept_bytes > KEPT_BYTES:
                self.kept = None
            if self.kept is not None or self.last == row:
                self.value = value(batch[self.column][0])
            if self.kept is not None:
                self.kept.append(self.value)
        if self.last < row:
            raise SourceError("no_image", f"{self.key[1]} has fewer rows than it says")
        return self.value

    def reads(self, key: _Key, row: int) -> bool:
        """Whether it can read a row without beginning anew."""
        return self.key == key and (self.last <= row or self.kept is not None)


_cursors: list[_Cursor] = []  # none of them in use; the one used last is at the end
_lock = threading.Lock()


def _read(key: _Key, row: int) -> Any:
    """A cell of a row group; the rows of a block follow one another in it.

    The cursor that is farthest goes on. After an error it is given up: where it stands is unknown.
    """
    with _lock:
        able = [cursor for cursor in _cursors if cursor.reads(key, row)]
        cursor = max(able, key=lambda cursor: cursor.last, default=None)
        if cursor is not None:
            _cursors.remove(cursor)
    if cursor is None:
        cursor = _Cursor(key)
    found = cursor.at(row)
    with _lock:
        _cursors.append(cursor)
        dropped = _cursors[:-CURSORS]
        del _cursors[:-CURSORS]
    for old in dropped:
        with suppress(OSError):
            old.opened.close()
    return found


@contextmanager
def _sound(store: Store, file: str) -> Iterator[None]:
    """Within, what a file that is no Parquet file raises is a SourceError that says so."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(store, RemoteStore) and isinstance(error, OSError):
            raise  # a network failure: the same command resumes
        raise damage(store, file, f"{file} is not a sound Parquet file: {error}") from None

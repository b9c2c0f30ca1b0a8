"""Parquet files of images (bytes, Hugging Face's image struct, or paths), and Pick-a-Pic's."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.config import InputError
from raypref.rows import Row, index_row
from raypref.sources.captions import ANY, PATH_KEYS, Columns
from raypref.sources.reading import damage, lookup, sound_files
from raypref.sources.store import RemoteStore, SourceError, Store

IMAGE_COLUMNS = tuple(dict.fromkeys(("image", "jpg", "png", "img", *PATH_KEYS)))
_BATCH = 4096  # captions in memory at once
_LISTS = 64  # lists of captions in memory at once: these are unpacked
GROUP_BYTES = 2**32  # of what is read of a row group: a small file can unpack to anything


def entries(store: Store, columns: Columns = ANY) -> Iterator[Row]:
    """Every row of every file, in order; of a list of captions each is an input of its own.

    A file that cannot be read becomes one dropped row, with the reason.

    Raises:
        InputError: a file has no columns of images and captions, or not one file is sound.
    """
    look = lookup(store)

    def rows(file: str) -> Iterator[Row]:
        size = store.size(file)
        schema = _schema(store, file)
        caption = _pick(schema.names, columns.captions, file, "caption")
        _must_be_text(schema.field(caption).type, file, caption)
        image = _pick(schema.names, image_names(columns), file, "image")
        held = _holds_images(schema.field(image).type, file, image)
        for row, cells in enumerate(_cells(store, file, [caption] if held else [caption, image])):
            where: dict[str, Any] = {"size": size, "member": row, "column": image}
            uri = file
            if not held:
                uri, found = look(posixpath.normpath(_text(cells[1]) or ""))
                if found is None:  # Hugging Face's metadata.parquet names files beside it
                    beside = posixpath.join(posixpath.dirname(file), uri)
                    uri, found = look(beside) if look(beside)[1] is not None else (uri, None)
                where = {"size": found}
            for number, text in enumerate(_texts(cells[0])):
                again = f"//{number}" if number else ""
                yield index_row(f"{_id(file, row)}{again}", uri, text, **where)

    yield from sound_files(store, _files(store), rows)


def image_names(columns: Columns) -> tuple[str, ...]:
    """Columns that may hold images or their paths."""
    return (columns.image,) if columns.image else IMAGE_COLUMNS


def has_images(store: Store, file: str, columns: Columns) -> bool:
    """Whether a file has a column for images; True where that cannot be told."""
    try:
        return not set(image_names(columns)).isdisjoint(_schema(store, file).names)
    except SourceError:
        return True


def pickapic(store: Store) -> Iterator[Row]:
    """Pick-a-Pic v2: the image people preferred, once each; ties are left out."""
    seen: set[str] = set()

    def rows(file: str) -> Iterator[Row]:
        size = store.size(file)
        columns = ["caption", "label_0", "image_0_uid", "image_1_uid"]
        names = _schema(store, file).names
        for column in (*columns, "jpg_0", "jpg_1"):
            _pick(names, (column,), file, column)
        for row, cells in enumerate(_cells(store, file, columns)):
            caption, label = _text(cells[0]), _value(cells[1])
            uids = [str(_value(cell)) for cell in cells[2:]]
            if label not in (0, 1):
                continue
            best = 0 if label == 1 else 1
            if uids[best] not in seen:
                seen.add(uids[best])
                column = f"jpg_{best}"
                yield index_row(_id(file, row), file, caption, size=size, member=row, column=column)

    yield from sound_files(store, _files(store), rows)


def _must_be_text(kind: pa.DataType, file: str, column: str) -> None:
    kind = _inner(kind)
    texts = kind.value_type if _is_list(kind) else kind
    if not (_is_string(_inner(texts)) or pa.types.is_null(texts)):
        raise InputError(
            f"{file}: the column {column} holds {kind}, no captions; name the column that holds "
            "text, or lists of text, with source.caption_column"
        )


def _holds_images(kind: pa.DataType, file: str, column: str) -> bool:
    """Whether a column holds images; False: paths of them."""
    kind = _inner(kind)
    if _is_string(kind) or pa.types.is_null(kind):
        return False
    if _is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        return True
    raise InputError(
        f"{file}: the column {column} holds {kind}, neither images (bytes, or a struct with bytes) "
        "nor paths (text); name another one with source.image_column"
    )


def _inner(kind: pa.DataType) -> pa.DataType:
    """What a dictionary's entries are."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()


def _is_binary(kind: pa.DataType) -> bool:
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return plain or kind == pa.binary_view() or pa.types.is_fixed_size_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    plain = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return plain or pa.types.is_fixed_size_list(kind)


def image(store: Store, file: str, column: str, row: int, *, max_bytes: int) -> bytes:
    """One row's image; only its row group is read, and only the image column.

    Raises:
        SourceError: there is no such image, it is too large, or the file is damaged.
    """
    size = store.size(file)
    if size is None:
        raise SourceError("missing_file", f"there is no file {file}")
    try:
        value = _cell(store, file, size, column, row)
    except (OSError, KeyError, pa.ArrowException) as error:
        if isinstance(store, RemoteStore) and isinstance(error, OSError):
            raise  # a network failure: the same command resumes
        raise SourceError("unreadable_file", f"{file}: {error}") from None
    # Hugging Face's image struct may hold a path instead of bytes: never followed, a foreign file
    # could then name any file of this machine.
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise SourceError("no_image", f"{file}, row {row} holds no image bytes")
    if len(data) > max_bytes:
        raise SourceError("too_many_bytes", f"{len(data)} bytes, more than {max_bytes}")
    return data


def _cell(store: Store, file: str, size: int, column: str, row: int) -> Any:
    first = 0
    for group, (rows, group_bytes) in enumerate(_groups(store, file, size, column)):
        if row < first + rows:
            if group_bytes > GROUP_BYTES:
                raise _too_large(file, group_bytes)
            return _value(_image_column(store, file, size, column, group)[row - first])
        first += rows
    raise SourceError("no_image", f"{file} has no row {row}")


def _files(store: Store) -> Iterator[str]:
    return (file.name for file in store.files() if file.name.endswith(".parquet"))


def _id(file: str, row: int) -> str:
    return f"{file}#{row:09d}"


def _schema(store: Store, file: str) -> pa.Schema:
    with _sound(store, file), store.open(file) as opened:
        return pq.read_schema(opened)


def _cells(store: Store, file: str, columns: list[str]) -> Iterator[tuple[pa.Scalar, ...]]:
    """The rows' cells of some columns."""
    with _sound(store, file), store.open(file) as opened:
        schema = pq.read_schema(opened)
        nested = [name for name in columns if pa.types.is_nested(schema.field(name).type)]
        # As the file holds them: what it has once, and names for each row, is once in memory.
        once = [name for name in columns if name not in nested]
        table = pq.ParquetFile(opened, read_dictionary=once)
        for group in map(table.metadata.row_group, range(table.num_row_groups)):
            if (unpacked := _unpacked(group, columns)) > GROUP_BYTES:
                said = f"{file}: the captions of a row group take {unpacked} bytes"
                raise SourceError("too_many_bytes", said)
        for batch in table.iter_batches(_LISTS if nested else _BATCH, columns=columns):
            yield from zip(*(batch[column] for column in columns), strict=True)


@contextmanager
def _sound(store: Store, file: str) -> Iterator[None]:
    """Within, what a file that is no Parquet file raises is a SourceError that says so."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(store, RemoteStore) and isinstance(error, OSError):
            raise  # a network failure: the same command resumes
        raise damage(store, file, f"{file} is not a sound Parquet file: {error}") from None


def _value(cell: pa.Scalar) -> Any:
    """A cell's value; None for what is no text though its type says so."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def _texts(cell: pa.Scalar) -> list[str | None]:
    """The captions of a cell: one or none, or those of a list."""
    value = _value(cell)
    texts = value if isinstance(value, list) else [value]
    return [text for text in texts if isinstance(text, str)] or [None]


def _text(cell: pa.Scalar) -> str | None:
    """A text, or None for what is none."""
    text = _value(cell)
    return text if isinstance(text, str) else None


@lru_cache(maxsize=8)
def _groups(store: Store, file: str, size: int, column: str) -> list[tuple[int, int]]:
    """Rows of each row group, and the bytes that its images take when they are unpacked."""
    del size  # part of the key: a file written anew is read anew
    with store.open(file) as opened:
        metadata = pq.read_metadata(opened)
    groups = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        groups.append((group.num_rows, _unpacked(group, [column])))
    return groups


def _unpacked(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """Bytes of some columns, of what a dictionary holds once."""
    chunks = map(group.column, range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] in columns
    )


@lru_cache(maxsize=2)  # a worker can read two blocks at a time
def _image_column(store: Store, file: str, size: int, column: str, group: int) -> pa.ChunkedArray:
    """The images of one row group. Kept, because the rows of a block follow one another in it."""
    del size
    images, unpacked = [], 0
    with store.open(file) as opened:
        # Row by row: the file may hold an image once and name it for each row.
        rows = pq.ParquetFile(opened).iter_batches(1, row_groups=[group], columns=[column])
        for row in rows:
            images.append(row[column])
            unpacked += row.nbytes
            if unpacked > GROUP_BYTES:
                raise _too_large(file, unpacked)
    return pa.chunked_array(images)


def _too_large(file: str, group_bytes: int) -> SourceError:
    message = f"{file}: a row group of {group_bytes} bytes or more, more than {GROUP_BYTES}"
    return SourceError("too_many_bytes", message)


def _pick(columns: list[str], names: tuple[str, ...], file: str, what: str) -> str:
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

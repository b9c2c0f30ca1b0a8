"""Parquet files of images (bytes, Hugging Face's image struct, or paths), and Pick-a-Pic's."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypref.config import InputError
from raypref.curate.folder import CAPTION_KEYS
from raypref.curate.place import Place, RemotePlace, SourceError, sizes
from raypref.rows import Row, index_row

IMAGE_COLUMNS = ("image", "jpg", "png", "img")
PATH_COLUMNS = ("path", "file", "file_name", "image_path")
_BATCH = 4096  # captions in memory at once
GROUP_BYTES = 2**32  # of what is read of a row group: a small file can unpack to anything


def entries(place: Place) -> Iterator[Row]:
    """Every row of every file, in order."""
    beside = sizes(place)
    for file, size in _files(place):
        names = _schema(place, file).names
        caption = _pick(names, CAPTION_KEYS, file, "caption")
        image = _pick(names, (*IMAGE_COLUMNS, *PATH_COLUMNS), file, "image")
        if image in IMAGE_COLUMNS:
            for row, (text,) in enumerate(_cells(place, file, [caption])):
                yield index_row(
                    _id(file, row), file, _text(text), size=size, member=row, column=image
                )
        else:
            for row, (text, path) in enumerate(_cells(place, file, [caption, image])):
                uri = posixpath.normpath(_text(path) or "")
                yield index_row(_id(file, row), uri, _text(text), size=beside(uri))


def pickapic(place: Place) -> Iterator[Row]:
    """Pick-a-Pic v2: the image people preferred, once each; ties are left out."""
    seen: set[str] = set()
    for file, size in _files(place):
        columns = ["caption", "label_0", "image_0_uid", "image_1_uid"]
        names = _schema(place, file).names
        for column in (*columns, "jpg_0", "jpg_1"):
            _pick(names, (column,), file, column)
        for row, cells in enumerate(_cells(place, file, columns)):
            caption, label, *uids = (_value(cell) for cell in cells)
            if label not in (0, 1):
                continue
            best = 0 if label == 1 else 1
            if uids[best] not in seen:
                seen.add(uids[best])
                column = f"jpg_{best}"
                yield index_row(_id(file, row), file, caption, size=size, member=row, column=column)


def image(place: Place, file: str, column: str, row: int, *, max_bytes: int) -> bytes:
    """One row's image; only its row group is read, and only the image column.

    Raises:
        SourceError: there is no such image, it is too large, or the file is damaged.
    """
    size = place.size(file)
    if size is None:
        raise SourceError("missing_file", f"there is no file {file}")
    try:
        value = _cell(place, file, size, column, row)
    except (OSError, pa.ArrowException) as error:
        if isinstance(place, RemotePlace) and isinstance(error, OSError):
            raise  # the network: the job goes on when it is started again
        raise SourceError("unreadable_file", f"{file}: {error}") from None
    # Hugging Face's image struct may hold a path instead of bytes: never followed, a foreign file
    # could then name any file of this machine.
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise SourceError("no_image", f"{file}, row {row} holds no image bytes")
    if len(data) > max_bytes:
        raise SourceError("too_many_bytes", f"{len(data)} bytes, more than {max_bytes}")
    return data


def _cell(place: Place, file: str, size: int, column: str, row: int) -> Any:
    first = 0
    for group, (rows, group_bytes) in enumerate(_groups(place, file, size, column)):
        if row < first + rows:
            if group_bytes > GROUP_BYTES:
                raise _too_large(file, group_bytes)
            return _value(_image_column(place, file, size, column, group)[row - first])
        first += rows
    raise SourceError("no_image", f"{file} has no row {row}")


def _files(place: Place) -> Iterator[tuple[str, int]]:
    return (file for file in place.files() if file.name.endswith(".parquet"))


def _id(file: str, row: int) -> str:
    return f"{file}#{row:09d}"


def _schema(place: Place, file: str) -> pa.Schema:
    try:
        with place.open(file) as opened:
            return pq.read_schema(opened)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is not a sound Parquet file: {error}") from None


def _cells(place: Place, file: str, columns: list[str]) -> Iterator[tuple[pa.Scalar, ...]]:
    """The rows' cells of some columns."""
    try:
        with place.open(file) as opened:
            # As the file holds them: what it has once, and names for each row, is once in memory.
            table = pq.ParquetFile(opened, read_dictionary=columns)
            for group in map(table.metadata.row_group, range(table.num_row_groups)):
                if (unpacked := _unpacked(group, columns)) > GROUP_BYTES:
                    raise InputError(f"{file}: captions of {unpacked} bytes in a row group")
            for batch in table.iter_batches(_BATCH, columns=columns):
                yield from zip(*(batch[column] for column in columns), strict=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is not a sound Parquet file: {error}") from None


def _value(cell: pa.Scalar) -> Any:
    """A cell's value; None for what is no text though its type says so."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def _text(cell: pa.Scalar) -> str | None:
    """A text, or None for what is none."""
    text = _value(cell)
    return text if isinstance(text, str) else None


@lru_cache(maxsize=8)
def _groups(place: Place, file: str, size: int, column: str) -> list[tuple[int, int]]:
    """Rows of each row group, and the bytes that its images take when they are unpacked."""
    del size  # part of the key: a file written anew is read anew
    with place.open(file) as opened:
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
def _image_column(place: Place, file: str, size: int, column: str, group: int) -> pa.ChunkedArray:
    """The images of one row group. Kept, because the rows of a block follow one another in it."""
    del size
    images, unpacked = [], 0
    with place.open(file) as opened:
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
        )
    return found[0]

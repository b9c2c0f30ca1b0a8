"""Parquet files of images (bytes, Hugging Face's image struct, or paths), or of prompts."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from raypref.core.config import InputError
from raypref.core.messages import first_line
from raypref.core.rows import Row, index_row
from raypref.sources.base import Layout
from raypref.sources.captions import PATH_KEYS, Columns
from raypref.sources.cells import (
    entry_type,
    files,
    holds_bytes,
    is_list,
    is_text,
    pick,
    row_id,
    rows_of,
    schema_of,
    text,
    value,
)
from raypref.sources.prompts import GROUPINGS, IDS, Prompt, column, of_record
from raypref.sources.reading import lookup, shown, sound_files
from raypref.sources.store import SourceError, Store

IMAGE_COLUMNS = tuple(dict.fromkeys(("image", "jpg", "png", "img", *PATH_KEYS)))


def photographs(store: Store, columns: Columns) -> Iterator[Row]:
    """Every row of every file, in order; of a list of captions each is an input of its own.

    A file that cannot be read becomes one dropped row, with the reason.

    Raises:
        InputError: a file has no columns of images and captions, or not one file is sound.
    """
    look = lookup(store)

    def rows(file: str) -> Iterator[Row]:
        size = store.size(file)
        schema = schema_of(store, file)
        caption = pick(schema.names, columns.captions, file, "caption")
        _must_be_text(schema.field(caption).type, file, caption)
        image = pick(schema.names, _image_names(columns), file, "image")
        held = _holds_images(schema.field(image).type, file, image)
        wanted = [caption] if held else [caption, image]
        for row, cells in enumerate(rows_of(store, file, wanted)):
            where: dict[str, Any] = {"size": size, "member": row, "column": image}
            uri = file
            if not held:
                uri, found = look(posixpath.normpath(text(cells[1]) or ""))
                if found is None:  # Hugging Face's metadata.parquet names files beside it
                    beside = posixpath.join(posixpath.dirname(file), uri)
                    uri, found = look(beside) if look(beside)[1] is not None else (uri, None)
                where = {"size": found}
            for number, words in enumerate(_texts(cells[0])):
                again = f"//{number}" if number else ""
                yield index_row(f"{row_id(file, row)}{again}", uri, words, **where)

    yield from sound_files(store, files(store), rows)


def prompts(store: Store, file: str) -> Iterator[Prompt]:
    """The column of prompts, with those of categories and ids. Images beside it are not read."""
    where = shown(store, file)
    try:
        schema = schema_of(store, file)
        found = column(where, schema.names)
        kind = entry_type(schema.field(found).type)
        if not is_text(kind):
            raise InputError(f"{where}: column '{found}' holds {kind}, not text")
        more = [name for name in schema.names if name.lower() in (*GROUPINGS, *IDS)]
        wanted = [found, *(name for name in more if name != found)]
        for cells in rows_of(store, file, wanted):
            record = zip(wanted, (cell.as_py() for cell in cells), strict=True)
            yield of_record(where, dict(record))
    except SourceError as error:
        raise InputError(f"{where} is not a Parquet file: {first_line(error)}") from None


def _image_names(columns: Columns) -> tuple[str, ...]:
    """Columns that may hold images or their paths."""
    return (columns.image,) if columns.image else IMAGE_COLUMNS


def _has_images(store: Store, file: str, columns: Columns) -> bool:
    """Whether a file has a column for images; True where that cannot be told.

    What a downloader notes beside what it fetched, as img2dataset does, holds none.
    """
    try:
        return not set(_image_names(columns)).isdisjoint(schema_of(store, file).names)
    except SourceError:
        return True


def _must_be_text(kind: pa.DataType, file: str, column: str) -> None:
    kind = entry_type(kind)
    texts = kind.value_type if is_list(kind) else kind
    if not (is_text(entry_type(texts)) or pa.types.is_null(texts)):
        raise InputError(
            f"{file}: the column {column} holds {kind}, no captions; name the column that holds "
            "text, or lists of text, with source.caption_column"
        )


def _holds_images(kind: pa.DataType, file: str, column: str) -> bool:
    """Whether a column holds images; False: paths of them."""
    kind = entry_type(kind)
    if is_text(kind) or pa.types.is_null(kind):
        return False
    if holds_bytes(kind):
        return True
    raise InputError(
        f"{file}: the column {column} holds {kind}, neither images (bytes, or a struct with bytes) "
        "nor paths (text); name another one with source.image_column"
    )


def _texts(cell: pa.Scalar) -> list[str | None]:
    """The captions of a cell: one or none, or those of a list."""
    found = value(cell)
    texts = found if isinstance(found, list) else [found]
    return [words for words in texts if isinstance(words, str)] or [None]


LAYOUT = Layout(
    photographs=photographs,
    prompts=prompts,
    suffixes=(".parquet",),
    beside=_has_images,
    advice="source.caption_column names the column that holds them",
)

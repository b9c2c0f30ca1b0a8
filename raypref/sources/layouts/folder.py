"""A folder of images: captions in tables (captions.csv, metadata.jsonl), or in a file per image."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import NamedTuple

from raypref.core.config import InputError
from raypref.core.rows import Row, index_row
from raypref.sources import masks
from raypref.sources.base import Layout
from raypref.sources.captions import (
    ENDS,
    METADATA,
    SIDECAR_BYTES,
    TABLE,
    Columns,
    Record,
    caption_in,
    csv_records,
    first_caption,
    is_index,
    json_records,
    sidecar_names,
)
from raypref.sources.names import Alike, one_form
from raypref.sources.reading import lookup, read
from raypref.sources.store import SourceError, Store

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif"),
        *(".tiff", ".heic", ".heif", ".avif", ".jxl"),
    )
)


class _Listed(NamedTuple):
    """A line of a table."""

    table: str
    file: str  # relative to the source
    caption: str | None


def photographs(store: Store, columns: Columns) -> Iterator[Row]:
    """What the folder lists, sorted by id.

    A photograph takes its captions from captions.csv in its own folder or one above, else from a
    file beside it, else from Hugging Face's metadata.csv or metadata.jsonl. A mask without a
    caption beside its photograph (`masks`) is a row with a problem.
    """
    there = dict(store.files())
    rows: list[Row] = []
    counts: Counter[str] = Counter()

    def add(file: str, size: int | None, caption: str | None) -> None:
        # One photograph may have several captions: each is an input of its own.
        # No file's name contains "//", so the id is no other file's.
        suffix = f"//{counts[file]}" if counts[file] else ""
        counts[file] += 1
        rows.append(index_row(f"{file}{suffix}", file, caption, size=size))

    lines = list(_lines(store, columns, _tables(there, (TABLE,)), rows))
    for file, size, caption in _located(store, there, lines):
        add(file, size, caption)
    sidecars = _by_form(there)
    bare: dict[str, Row] = {}
    for file, size in there.items():
        if _is_image(file) and file not in counts:
            text, problem = _sidecar(store, file, there, sidecars, columns)
            row = index_row(file, file, text, size=size, problem=problem)
            if text or problem:
                rows.append(row)
            else:
                bare[file] = row
    if bare:
        lines = list(_lines(store, columns, _tables(there, METADATA), rows))
        for file, size, caption in _located(store, there, lines):
            if file in bare or file not in there:
                add(file, size, caption)
    left = {file: row for file, row in bare.items() if not counts[file]}
    images = [file for file in there if _is_image(file)] if left else []
    made = masks.made_of(left, images)
    rows += [
        row | {"problem": masks.problem(file, made[file])} if file in made else row
        for file, row in left.items()
    ]
    yield from sorted(rows, key=lambda row: row["id"])


def _tables(there: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """Tables of these names, those of upper folders first."""
    found = [file for file in there if _named(file, names)]
    return sorted(found, key=lambda file: (file.count("/"), file))


def _lines(
    store: Store, columns: Columns, tables: Iterable[str], rows: list[Row]
) -> Iterator[_Listed]:
    """The lines of tables; what cannot be used is added to the rows with its reason.

    Raises:
        InputError: the captions.csv of the source's own folder is broken.
    """
    for table in tables:
        folder = posixpath.dirname(table)
        try:
            for record in _records(store, table, columns):
                if record.file is None:
                    id_ = f"{table}#{record.number:09d}"
                    rows.append(index_row(id_, table, None, problem=record.problem))
                else:
                    file = posixpath.normpath(posixpath.join(folder, record.file))
                    yield _Listed(table, file, record.caption)
        except SourceError as error:
            if table.lower() == TABLE:
                raise InputError(f"{store.path.rstrip('/')}/{error}") from None
            # Another name may be that of a table of something else.
            if _named(table, (TABLE,)) or error.reason != "bad_table":
                problem = f"{error.reason}: {error.message}"
                rows.append(index_row(f"{table}#//damaged", table, None, problem=problem))


def _records(store: Store, table: str, columns: Columns) -> Iterator[Record]:
    if table.lower().endswith(".csv"):
        yield from csv_records(store, table, columns)
    elif is_index(store, table, columns):
        yield from json_records(store, table, columns)


def _located(
    store: Store, there: Mapping[str, int], lines: list[_Listed]
) -> Iterator[tuple[str, int | None, str | None]]:
    """File, bytes and caption of each line: of the tables that list a file, the first one counts.

    A name that differs from the file's in Unicode form, slashes or letter case finds it, unless
    another line has the file's exact name.
    """
    look, alike = lookup(store), Alike(there)
    named = {line.file for line in lines}
    taken: dict[str, str] = {}
    for line in lines:
        found = alike.find(line.file)
        file, size = look(line.file) if found is None else (found, there[found])
        if file != line.file and file in named:
            file, size = line.file, None
        if taken.setdefault(file, line.table) == line.table:
            yield file, size, line.caption


def _by_form(there: Iterable[str]) -> dict[str, str | None]:
    """Sidecars by the form in which names are compared; None where several have one form."""
    found: dict[str, str | None] = {}
    for name in there:
        if name.lower().endswith(ENDS):
            form = _form(name)
            found[form] = None if form in found else name
    return found


def _form(sidecar: str) -> str:
    # Not without regard to case: img.txt is not the caption of another photograph, IMG.jpg.
    stem, end = posixpath.splitext(sidecar)
    return one_form(stem) + end.lower()


def _sidecar(
    store: Store,
    photo: str,
    there: Container[str],
    others: Mapping[str, str | None],
    columns: Columns,
) -> tuple[str | None, str | None]:
    """The caption beside an image, and what is wrong with the file: neither where there is none."""

    def texts() -> Iterator[tuple[str | None, str | None]]:
        for wanted in sidecar_names(photo):
            name = wanted if wanted in there else others.get(_form(wanted))
            if name is None:
                continue
            try:
                yield caption_in(read(store, name, max_bytes=SIDECAR_BYTES), name, columns)
            except SourceError as error:
                yield None, f"{error.reason}: {error.message}"

    return first_caption(texts())


def _speaks(name: str) -> bool:
    """Whether a file is a table of captions or an image."""
    return _named(name, (TABLE, *METADATA)) or _is_image(name)


def _named(file: str, names: tuple[str, ...]) -> bool:
    return posixpath.basename(file).lower() in names


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


LAYOUT = Layout(
    photographs=photographs,
    speaks=_speaks,
    advice="add captions.csv with the columns file,caption or a photo.txt beside each photo",
)

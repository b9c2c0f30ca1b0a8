"""Pick-a-Pic: Parquet files of two images of a caption, and which of them a person preferred."""

from __future__ import annotations

from collections.abc import Iterator

from raypref.core.rows import Row, index_row
from raypref.sources.base import Layout, Pair, Ref
from raypref.sources.captions import Columns
from raypref.sources.cells import files, pick, row_id, rows_of, schema_of, text, value
from raypref.sources.reading import sound_files
from raypref.sources.store import Store

IMAGES = ("jpg_0", "jpg_1")


def photographs(store: Store, _columns: Columns) -> Iterator[Row]:
    """The image that a person preferred, once each; ties are left out."""
    seen: set[str] = set()

    def rows(file: str) -> Iterator[Row]:
        size = store.size(file)
        columns = ["caption", "label_0", "image_0_uid", "image_1_uid"]
        _must_have(store, file, [*columns, *IMAGES])
        for row, cells in enumerate(rows_of(store, file, columns)):
            caption, label = text(cells[0]), value(cells[1])
            uids = [str(value(cell)) for cell in cells[2:]]
            if label not in (0, 1):
                continue
            best = 0 if label == 1 else 1
            if uids[best] not in seen:
                seen.add(uids[best])
                id_, image = row_id(file, row), IMAGES[best]
                yield index_row(id_, file, caption, size=size, member=row, column=image)

    yield from sound_files(store, files(store), rows)


def pairs(store: Store) -> Iterator[Pair]:
    """Every row; one that says it has no label (`has_label`) is none."""
    for file in files(store):
        columns = ["caption", "label_0"]
        names = _must_have(store, file, [*columns, *IMAGES])
        optional = [name for name in ("has_label",) if name in names]
        for row, cells in enumerate(rows_of(store, file, [*columns, *optional])):
            if optional and not value(cells[2]):
                continue
            caption = text(cells[0])
            if caption is None:
                raise ValueError(f"{file}: row {row} has no caption")
            first, second = (Ref(file, row, column) for column in IMAGES)
            yield Pair(caption, first, second, float(value(cells[1])))


def _must_have(store: Store, file: str, columns: list[str]) -> list[str]:
    """The names of a file's columns. InputError where one is missing or there twice."""
    names: list[str] = schema_of(store, file).names
    for column in columns:
        pick(names, (column,), file, column)
    return names


LAYOUT = Layout(photographs=photographs, pairs=pairs)

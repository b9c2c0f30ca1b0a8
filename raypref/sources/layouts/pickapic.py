"""Pick-a-Pic: Parquet files of two images of a caption, and which of them a person preferred."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial

from raypref.core.config import InputError
from raypref.core.rows import Row, index_row
from raypref.sources.base import Layout, Pair, Ref
from raypref.sources.captions import Columns
from raypref.sources.cells import files, pick, row_id, rows_of, schema_of, text, value
from raypref.sources.labels import label_of, model_of, no_pair
from raypref.sources.reading import sound, sound_files
from raypref.sources.records import usable
from raypref.sources.store import SourceError, Store

IMAGES = ("jpg_0", "jpg_1")
OPTIONAL = ("has_label", "are_different", "model_0", "model_1")


def photographs(store: Store, columns: Columns) -> Iterator[Row]:
    """The image that a person preferred, once each; ties are left out.

    With `columns.pool` "all": both images of every row, once per caption.
    """
    listing = _all if columns.pool == "all" else _winners
    yield from listing(store)


def _winners(store: Store) -> Iterator[Row]:
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


def _all(store: Store) -> Iterator[Row]:
    seen: set[bytes] = set()  # digests: there are millions of images and captions

    def rows(file: str) -> Iterator[Row]:
        size = store.size(file)
        columns = ["caption", "image_0_uid", "image_1_uid"]
        _must_have(store, file, [*columns, *IMAGES])
        for row, cells in enumerate(rows_of(store, file, columns)):
            caption = text(cells[0])
            for side, cell in enumerate(cells[1:]):
                id_ = f"{row_id(file, row)}//{side}"
                named = f"{value(cell) or id_}\0{caption}".encode(errors="surrogatepass")
                key = hashlib.blake2b(named, digest_size=16).digest()
                if key not in seen:
                    seen.add(key)
                    column = IMAGES[side]
                    yield index_row(id_, file, caption, size=size, member=row, column=column)

    yield from sound_files(store, files(store), rows)


def pairs(store: Store) -> Iterator[Pair]:
    """Every row, in order. One that says it has no label (`has_label`) has none.

    One whose images are not different (`are_different`) cannot be used.
    """
    yield from sound(store, files(store), partial(_pairs, store), no_pair)


def _pairs(store: Store, file: str) -> Iterator[Pair]:
    columns = ["caption", "label_0"]
    names = _must_have(store, file, [*columns, *IMAGES])
    columns += [name for name in OPTIONAL if name in names]
    for row, cells in enumerate(rows_of(store, file, columns)):
        known = dict(zip(columns, map(value, cells), strict=True))
        where = f"row {row} of {file}"
        caption = known["caption"] if isinstance(known["caption"], str) else ""
        problem = ""
        try:
            label = label_of(known["label_0"], where)
        except SourceError as error:
            label, problem = None, f"{error.reason}: {error.message}"
        if not known.get("has_label", True):
            label, problem = None, ""
        first, second = (Ref(file, row, column) for column in IMAGES)
        one, two = (model_of(known.get(name)) for name in ("model_0", "model_1"))
        found = Pair(caption, first, second, label, None, one, two, id=row_id(file, row))
        if known.get("are_different") is False:
            problem = problem or f"same_image: {where} says that its images do not differ"
        yield found._replace(problem=problem) if problem else usable(found, where)


def _must_have(store: Store, file: str, columns: list[str]) -> list[str]:
    """The names of a file's columns. InputError where one is missing or there twice."""
    names: list[str] = schema_of(store, file).names
    if "image_0_url" in names and IMAGES[0] not in names:
        raise InputError(
            f"{file}: there are addresses of images (image_0_url), no images ({IMAGES[0]}); fetch "
            "the edition of the dataset that holds them"
        )
    for column in columns:
        pick(names, (column,), file, column)
    return names


LAYOUT = Layout(
    photographs=photographs,
    pools=True,
    pairs=pairs,
    pairs_in=lambda names: {"caption", "label_0"} <= {*names} and "image_0" not in names,
)

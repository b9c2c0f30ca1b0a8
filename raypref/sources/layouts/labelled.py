"""Label files of one's own, and what raypref and `datasets` write: pairs or images with labels.

CSV, TSV, JSON, JSONL (also with .gz), Parquet, or the Arrow files of `datasets`. Images are paths,
relative to the label file, or bytes in a cell. A folder of a pairs ledger is such a dataset.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from raypref.core.config import InputError
from raypref.core.ledger import MANIFEST, STARTED
from raypref.sources import labels, tables
from raypref.sources.base import LabelledImage, Layout, Pair
from raypref.sources.reading import shown, sound
from raypref.sources.store import SourceError, Store

Found = TypeVar("Found", labels.PairColumns, labels.ImageColumns)
Telling = Callable[[list[str], str], Found | None]  # from names of columns and a file to columns


def pairs(store: Store) -> Iterator[Pair]:
    """Every row of every table of labelled pairs, in order."""
    files = _tables(store, labels.pair_columns)
    yield from sound(store, files, partial(_pairs, store), labels.no_pair)


def images(store: Store) -> Iterator[LabelledImage]:
    """Every row of every table of labelled images, in order."""
    files = _tables(store, labels.image_columns)
    yield from sound(store, files, partial(_images, store), labels.no_image)


def _pairs(store: Store, file: str) -> Iterator[Pair]:
    columns = labels.pair_columns(tables.columns_of(store, file), shown(store, file))
    if columns is None:
        return
    for line, id_ in _lines(store, file, columns):
        if line.problem:
            yield labels.no_pair(id_, line.problem)
        else:
            folder = posixpath.dirname(file)
            yield labels.pair_of(line.values, columns, id_=id_, where=line.where, folder=folder)


def _images(store: Store, file: str) -> Iterator[LabelledImage]:
    columns = labels.image_columns(tables.columns_of(store, file), shown(store, file))
    if columns is None:
        return
    for line, id_ in _lines(store, file, columns):
        if line.problem:
            yield labels.no_image(id_, line.problem)
        else:
            folder = posixpath.dirname(file)
            yield labels.labelled_of(line.values, columns, id_=id_, where=line.where, folder=folder)


def _lines(
    store: Store, file: str, columns: labels.PairColumns | labels.ImageColumns
) -> Iterator[tuple[tables.TableRow, str]]:
    """The rows of a table with the id of each."""
    wanted = list(dict.fromkeys(filter(None, columns)))
    for line in tables.lines(store, file, wanted):
        yield line, f"{file}#{line.number:09d}"


def _tables(store: Store, telling: Telling[Found]) -> Iterator[str]:
    """The files that hold such labels, and those that cannot be read: these are dropped entries.

    Raises:
        InputError: there is none, or it is a ledger that no job has finished.
    """
    # Hidden files are not listed: that of a run that still writes its pairs would go unseen.
    if store.only is None and store.size(STARTED) is not None and store.size(MANIFEST) is None:
        raise InputError(
            f"source.path: '{store.path}' is a ledger that is not complete; finish the run that "
            "makes it"
        )
    refused: InputError | None = None  # of the first file that is no such table
    any_found = False
    for file in tables.table_files(store):
        try:
            names = tables.columns_of(store, file)
        except InputError as error:
            refused = refused or error
            continue
        except SourceError:
            any_found = True
            yield file
            continue
        if telling(names, shown(store, file)) is not None:
            any_found = True
            yield file
        else:
            refused = refused or labels.lacking(shown(store, file), names)
    if not any_found:
        ends = ", ".join(tables.SUFFIXES)
        raise refused or InputError(f"source.path: no {ends} file in '{store.path}'")


LAYOUT = Layout(
    pairs=pairs, images=images, pairs_in=labels.names_pairs, images_in=labels.names_images
)

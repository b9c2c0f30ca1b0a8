"""Labelled pairs and images of any layout: recognising the layout, listing, reading an image."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

from raypref.core.config import InputError
from raypref.sources import arrow, cells, samples, tables
from raypref.sources.base import LabelledImage, Pair, Ref
from raypref.sources.captions import as_text
from raypref.sources.found import nothing
from raypref.sources.layouts import REGISTRY, What, giving
from raypref.sources.reading import Look, lookup, read
from raypref.sources.store import SourceError, Store, locate

_SHARD = ".tar"
_TRIES = 20  # files of a suffix that are looked at
_EXPECTED = {
    "pairs": "columns prompt, chosen, rejected, or prompt, image_0, image_1, label",
    "images": "columns prompt, image, score, or prompt, image, label",
}


def images_beside(
    store: Store, folder: str = "", roots: tuple[str, ...] = (), *, key: str = "pairs.images"
) -> Store:
    """Where images that are files are read from.

    Args:
        store: of the labels.
        folder: that image paths are relative to; empty: the folder of the labels.
        roots: folders of this machine that links and absolute paths may lead to.
        key: of the setting that names the folder, for errors.

    Raises:
        InputError: there is no such folder.
    """
    if folder:
        return locate(folder, roots, key=key)
    if store.only is None:
        return store
    return replace(store, path=posixpath.dirname(store.path), only=None)


def labelled_pairs(store: Store, layout: str) -> Iterator[Pair]:
    """The pairs that a layout lists, one at a time, those with a problem too.

    Args:
        store: where the labels lie.
        layout: its name; "auto" recognises it.

    Raises:
        InputError: the layout gives no labelled pairs, or the store does not hold this layout.
    """
    name = _named(store, layout, "pairs")
    listing = REGISTRY[name].pairs
    assert listing is not None
    with _of_layout(store, name):
        yield from listing(store)


def labelled_images(store: Store, layout: str) -> Iterator[LabelledImage]:
    """The single images that a layout lists, in the same way.

    Raises:
        InputError: the layout gives no labelled images, or the store does not hold this layout.
    """
    name = _named(store, layout, "images")
    listing = REGISTRY[name].images
    assert listing is not None
    with _of_layout(store, name):
        yield from listing(store)


def recognise_pairs(store: Store) -> str:
    """The name of the layout of labelled pairs that a store holds, told by its files' content.

    Raises:
        InputError: there is none, or there are several; says what was found.
    """
    return _recognised(store, "pairs")


def recognise_images(store: Store) -> str:
    """The name of the layout of labelled single images, in the same way."""
    return _recognised(store, "images")


def _recognised(store: Store, what: What) -> str:
    found: dict[str, str] = {}  # layout -> the first file that speaks for it
    told: dict[str, str] = {}  # suffix -> what its first file has
    tries: Counter[str] = Counter()
    spoken: set[str] = set()  # suffixes of files that speak for a layout
    for file in store.files():
        suffix = tables.suffix_of(file.name)
        if suffix not in (*tables.SUFFIXES, _SHARD) or suffix in spoken or tries[suffix] == _TRIES:
            continue
        tries[suffix] += 1
        try:
            look = samples.parts_of if suffix == _SHARD else tables.columns_of
            names = look(store, file.name)
        except (InputError, SourceError) as error:
            told.setdefault(suffix, str(error).removeprefix("source.path: "))
            continue
        has = ", ".join(as_text(" ".join(name.split())) for name in names)[:200] or "nothing"
        told.setdefault(suffix, f"{file.name} has {has}")
        for name, layout in giving(what).items():
            tells = layout.pairs_in if what == "pairs" else layout.images_in
            if (suffix == _SHARD) == (_SHARD in layout.suffixes) and tells and tells(names):
                found.setdefault(name, file.name)
                spoken.add(suffix)
    if len(found) == 1:
        return next(iter(found))
    known = ", ".join(giving(what))
    if found:
        said = " and ".join(f"{name} ({file})" for name, file in found.items())
        raise InputError(
            f"source.path: '{store.path}' looks like {said}; name one of them with source.layout"
        )
    said = "; ".join(told.values()) or nothing(store)
    raise InputError(
        f"source.path: no labelled {what} in '{store.path}': {said}; expected {_EXPECTED[what]}; "
        f"layouts that source.layout can name: {known}"
    )


def _named(store: Store, layout: str, what: What) -> str:
    name = _recognised(store, what) if layout == "auto" else layout
    if name not in giving(what):
        names = ", ".join(giving(what))
        raise InputError(f"source.layout: {name} gives no labelled {what}; those that do: {names}")
    return name


@contextmanager
def _of_layout(store: Store, name: str) -> Iterator[None]:
    """Within, what a listing raises where the store holds another layout is an InputError."""
    try:
        yield
        return
    except InputError:
        raise
    except SourceError as error:
        said = str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
    raise InputError(f"source.path: '{store.path}' is not of the layout {name} ({said})")


def image_bytes(ref: Ref, labels: Store, images: Store, *, max_bytes: int) -> bytes:
    """The encoded bytes of the image that a reference names.

    Args:
        ref: of a labelled pair or image.
        labels: where cells and stretches of files are read from.
        images: where images that are files are read from (`images_beside`).
        max_bytes: a larger image is not read.

    Raises:
        SourceError: the image is missing, too large, unreadable or outside its folder.
        OSError: an object store failed.
    """
    if ref.column:
        if not ref.file.endswith(arrow.SUFFIX):
            return cells.image(labels, ref.file, ref.column, ref.row, max_bytes=max_bytes)
        size = labels.size(ref.file)
        if size is None:
            raise SourceError("missing_file", f"there is no file {ref.file}")
        found = arrow.cell(labels, ref.file, size, ref.column, ref.row)
        return cells.image_in(found, ref.file, ref.row, max_bytes=max_bytes)
    if ref.size is not None:
        return read(labels, ref.file, max_bytes=max_bytes, start=ref.row, size=ref.size)
    try:
        return read(images, ref.file, max_bytes=max_bytes)
    except SourceError as error:
        if error.reason != "missing_file":
            raise
        file, size = _look(images)(ref.file)
        if size is None:
            raise
        return read(images, file, max_bytes=max_bytes)


@lru_cache(4)
def _look(images: Store) -> Look:
    """Finds names that differ in Unicode form, slashes or letter case."""
    return lookup(images)

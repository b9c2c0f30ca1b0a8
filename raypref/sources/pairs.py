"""Labelled pairs and images of any layout: recognising the layout, listing, reading an image."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from raypref.core.config import InputError
from raypref.sources import cells
from raypref.sources.base import LabelledImage, Pair, Ref
from raypref.sources.layouts import REGISTRY, What, giving
from raypref.sources.reading import read
from raypref.sources.store import SourceError, Store, locate


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
    """The name of the layout of labelled pairs that a store holds, told by content."""
    raise InputError(f"source.path: what '{store.path}' holds is named by source.layout")


def _named(store: Store, layout: str, what: What) -> str:
    name = recognise_pairs(store) if layout == "auto" else layout
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
        return cells.image(labels, ref.file, ref.column, ref.row, max_bytes=max_bytes)
    if ref.size is not None:
        return read(labels, ref.file, max_bytes=max_bytes, start=ref.row, size=ref.size)
    return read(images, ref.file, max_bytes=max_bytes)

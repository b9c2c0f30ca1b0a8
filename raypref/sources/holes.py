"""Holes to evaluate inpainting models on: photographs, masks and prompts as people keep them."""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from raypref.core.config import InputError
from raypref.core.rows import Row
from raypref.core.schemes import scheme_of
from raypref.sources.benchmarks import BRUSHBENCH, EDITBENCH, editbench, mapped
from raypref.sources.captions import ANY
from raypref.sources.layouts import folder
from raypref.sources.masks import masks_of
from raypref.sources.store import LocalStore, SourceError, Store, locate

log = logging.getLogger(__name__)
KEY = "evaluate.holes"
_ADVICE = re.compile(r"; source\.\w+ [^;]*")

# Where a hole is: light columns, no pixel. `raypref/evaluate/holes.py` reads the images.
HOLE = pa.schema(
    [
        ("root", pa.string()),  # folder or URI that both files are relative to
        ("photo_file", pa.string()),
        ("mask_form", pa.string()),  # picture, runs or masked
        ("mask_file", pa.string()),  # null with runs
        ("mask_runs", pa.string()),  # run lengths along the rows, else null
        ("mask_width", pa.int32()),  # pixels that the run lengths count, else null
        ("mask_height", pa.int32()),
    ]
)


def read_holes(path: str, *, limit: int | None) -> list[Row]:
    """The holes of a benchmark or of a folder of one's own, in the order of the source.

    What the path is, its content tells. An entry that cannot be used is left out, and a warning
    counts them. No image is opened.

    Args:
        path: a folder or file, local or a URI, or a scheme as `tiny:holes`.
        limit: take the first so many holes that can be used; None takes all.

    Returns:
        Rows with `id` (unique), `prompt` and the columns of `HOLE`.

    Raises:
        InputError: there is nothing, it is of no known form, or holds no hole.
    """
    if embedded := scheme_of(path):
        scheme, name = embedded
        path = str(scheme.holes(name, limit=limit))
    store = locate(path, key=KEY)
    found: dict[str, Row] = {}
    left_out, first = 0, ""
    try:
        for row in _listed(store):
            problem = row.get("problem") or (
                f"entry {row['id']} is there twice" if row["id"] in found else ""
            )
            if problem:
                left_out, first = left_out + 1, first or problem
                continue
            found[row["id"]] = {**dict.fromkeys(HOLE.names), "root": _root(store), **row}
            if len(found) == limit:
                break
    except SourceError as error:
        raise InputError(f"{KEY}: '{path}': {of_holes(str(error))}") from None
    except InputError as error:
        raise InputError(f"{KEY}: {of_holes(str(error))}") from None
    first = of_holes(first)
    if left_out:
        log.warning("%s: %s left out: %s", KEY, _entries(left_out), first)
    if not found:
        said = f" ({first})" if first else ""
        raise InputError(f"{KEY}: '{path}' holds no hole that can be used{said}")
    return list(found.values())


def of_holes(said: str) -> str:
    """A message without settings of `source`, which holes to evaluate on do not have."""
    return _ADVICE.sub("", said).removeprefix("source.path: ")


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def _root(store: Store) -> str:
    """The folder that the files of a store are relative to, as a path or URI."""
    if isinstance(store, LocalStore):
        # Workers do not share the driver's working directory.
        return str(Path(store.base).absolute())
    return store.path if store.only is None else posixpath.dirname(store.path)


def _listed(store: Store) -> Iterator[Row]:
    """The entries, in whatever form they are."""
    if store.only is not None:
        if store.only.endswith(".json"):
            return mapped(store, store.only)
        if store.only in EDITBENCH:
            return editbench(store, {store.only: EDITBENCH[store.only]})
        known = ", ".join(EDITBENCH)
        raise InputError(f"'{store.path}' is a file, but no .json and none of {known}")
    names = store.names("")
    for file in BRUSHBENCH:
        if file in names:
            return mapped(store, file)
    if tables := {name: part for name, part in EDITBENCH.items() if name in names}:
        return editbench(store, tables)
    return _folder(store)


def _folder(store: Store) -> Iterator[Row]:
    """Pictures with `mask` in their name beside a photograph with a caption (`masks_of`)."""
    listed = list(folder.photographs(store, ANY))
    captions: dict[str, str] = {}
    for row in listed:
        if row["caption"] and not row["problem"]:
            captions.setdefault(row["uri"], row["caption"])
    of = masks_of(listed)
    for photo in sorted({*captions} - {*of.values()}):
        stem = posixpath.splitext(posixpath.basename(photo))[0]
        yield {"problem": f"{photo} has no mask such as {stem}_mask.png"}
    for mask, photo in of.items():
        if photo not in captions:
            yield {"problem": f"{photo} has no caption"}
            continue
        where = {"photo_file": photo, "mask_form": "picture", "mask_file": mask}
        yield {"id": mask, "prompt": captions[photo], **where}

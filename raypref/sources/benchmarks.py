"""Published benchmarks of inpainting as they are published: BrushBench and EditBench.

Each reader yields a row per entry: `id`, `prompt` and where photograph and mask are, or a
`problem` for one that cannot be used.
"""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raypref.core.config import InputError
from raypref.core.rows import Row
from raypref.images.masks import BadMask, from_runs, share
from raypref.sources.captions import as_text
from raypref.sources.reading import Look, csv_fault, lookup, read, shown, text_lines
from raypref.sources.records import path_of, records
from raypref.sources.store import RemoteStore, SourceError, Store

BRUSHBENCH = ("mapping_file.json", "mapping_file_list.json")
EDITBENCH = {f"annotations_{part}.csv": part for part in ("natural", "generated")}
WHOLE_BYTES = 2**27  # of a JSON object, which is parsed as a whole
SIDE = 512  # that BrushBench's run lengths count
_FORMS = "BrushBench (image, caption, inpainting_mask) or EditBench (image_path, masked_image_path)"


def mapped(store: Store, file: str) -> Iterator[Row]:
    """The entries of BrushBench, an object or a list, or of a list of EditBench.

    Raises:
        InputError: it is neither.
        SourceError: it cannot be read.
    """
    where, look = shown(store, file), lookup(store)
    entry: Callable[[Look, str, Any, str], Row] | None = None
    first = ""  # keys of the first entry that is of neither form
    for id_, item in _items(store, file):
        # An entry that tells nothing is one of those before it.
        entry = _entry_of(item) or entry
        if entry is not None:
            yield entry(look, id_, item, posixpath.dirname(file))
            continue
        found = as_text(", ".join(map(str, list(item)[:8]))) if isinstance(item, dict) else ""
        found = found or type(item).__name__
        first = first or found
        yield {
            "problem": as_text(f"entry {id_} is neither of BrushBench nor of EditBench: {found}")
        }
    if entry is None:
        said = f"entries must be those of {_FORMS}; the first has {first}"
        raise InputError(f"{where}: {said}" if first else f"{where} has no entries")


def _entry_of(item: Any) -> Callable[[Look, str, Any, str], Row] | None:
    """What reads an entry; None where its keys tell nothing."""
    keys = set(item) if isinstance(item, dict) else set()
    if "inpainting_mask" in keys:
        return _brushbench
    return _editbench if "masked_image_path" in keys else None


def _items(store: Store, file: str) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON list or object, with their keys or numbers."""
    where = shown(store, file)
    if _begins_a_list(store, file):
        for number, item in enumerate(records(store, file)):
            yield f"{number:06d}", item
        return
    try:
        content = json.loads(read(store, file, max_bytes=WHOLE_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{where} must hold a JSON object or list of entries")
    yield from content.items()


def _begins_a_list(store: Store, file: str) -> bool:
    try:
        with store.open(file) as opened:
            start = opened.read(1024)
    except OSError as error:
        if isinstance(store, RemoteStore):
            raise
        raise SourceError("unreadable_file", f"{file} cannot be read: {error}") from None
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _brushbench(look: Look, id_: str, item: Any, folder: str) -> Row:
    """BrushBench: run lengths along the rows of 512 x 512 pixels, counted from 1."""
    try:
        id_ = as_text(str(item.get("image_id", id_)))
        prompt, photo = _text(item, "caption"), _text(item, "image")
        runs, size = item["inpainting_mask"], (item.get("width", SIDE), item.get("height", SIDE))
        if not all(isinstance(side, int) for side in size):
            raise TypeError("width and height must be whole numbers")
        if not share(from_runs(runs, width=size[0], height=size[1], columns=False)):
            raise BadMask("its mask is empty")
    except (KeyError, TypeError, AttributeError, BadMask) as error:
        return _bad(id_, error)
    text = runs if isinstance(runs, str) else ",".join(map(str, runs))
    mask = {"mask_form": "runs", "mask_runs": text, "mask_width": size[0], "mask_height": size[1]}
    return _there(look, id_, prompt, posixpath.join(folder, photo), mask)


def _editbench(look: Look, id_: str, item: Any, folder: str) -> Row:
    """A list of EditBench: photographs, copies with the hole painted black, captions."""
    try:
        name = item.get("aos", id_)
        id_ = as_text("_".join(str(part) for part in (name, item.get("type")) if part is not None))
        caption = "prompt_full" if "prompt_full" in item else "caption"
        prompt, photo = _text(item, caption), _text(item, "image_path")
        masked = _text(item, "masked_image_path")
    except (KeyError, TypeError, AttributeError) as error:
        return _bad(id_, error)
    photo, masked = (posixpath.join(folder, name) for name in (photo, masked))
    return _there(look, id_, prompt, photo, {"mask_form": "masked", "mask_file": masked})


def editbench(store: Store, tables: Mapping[str, str]) -> Iterator[Row]:
    """EditBench as published: annotations, photographs and their masks in folders by part.

    The prompt is `prompt_full`: it describes the whole picture, as BrushNet's authors use it.

    Args:
        store: where it lies.
        tables: from the name of a file of annotations to its part, natural or generated.

    Raises:
        InputError: a table lacks its columns or cannot be parsed.
        SourceError: it cannot be read.
    """
    look = lookup(store)
    for table, part in tables.items():
        where = shown(store, table)
        lines = csv.DictReader(text_lines(store, table, newline=""), strict=True)
        try:
            if missing := {"aos", "prompt_full"} - set(lines.fieldnames or ()):
                raise InputError(f"{where}: there is no column {' or '.join(sorted(missing))}")
            for line in lines:
                name, prompt = line["aos"] or "", (line["prompt_full"] or "").strip()
                id_ = f"{name}_{part}"
                if not name or not prompt:
                    yield _bad(id_, KeyError("aos" if not name else "prompt_full"))
                    continue
                file = {kind: f"{kind}_{part}/{name}.png" for kind in ("references", "masks")}
                mask = {"mask_form": "masked", "mask_file": file["masks"]}
                yield _there(look, id_, prompt, file["references"], mask)
        except csv.Error as error:
            at = f"{where}, line {lines.line_num + 1}"
            raise InputError(f"{at}: {csv_fault(error)}") from None


def _text(item: Any, key: str) -> str:
    """A text of an entry that is not blank."""
    value = item[key]
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{key} must be text")
    if as_text(value) != value:  # JSON can hold half a character
        raise TypeError(f"{key} is not valid Unicode")
    return value.strip()


def _bad(id_: str, error: Exception) -> Row:
    said = f"it has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
    return {"problem": as_text(f"entry {id_}: {said}")}


def _there(look: Look, id_: str, prompt: str, photo: str, mask: Row) -> Row:
    """The row of an entry whose files are there; the names are those that the files have."""
    row = {"id": id_, "prompt": prompt, "photo_file": path_of(photo), **mask}
    for column in ("photo_file", "mask_file"):
        if column in row:
            row[column], size = look(path_of(row[column]))
            if size is None:
                said = f"entry {id_}: there is no file {row[column]} in the folder of the benchmark"
                return {"problem": as_text(said)}
    return row

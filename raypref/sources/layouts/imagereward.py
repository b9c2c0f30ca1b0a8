"""ImageRewardDB: records that rank the generations of a prompt; the lowest rank is the best."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from raypref.core.config import InputError
from raypref.core.rows import Row
from raypref.sources import cells, labels
from raypref.sources.base import LabelledImage, Layout, Pair, Ref
from raypref.sources.captions import Columns, as_text
from raypref.sources.reading import lookup, sound
from raypref.sources.records import (
    MOST,
    bad_record,
    path_of,
    photograph,
    ranked,
    records,
    too_many,
    usable,
)
from raypref.sources.store import Store

_COLUMNS = ("prompt_id", "prompt", "rank", "overall_rating")  # of the Parquet files
_RATED = labels.ImageColumns("prompt", "image", "score", "", "")


def photographs(store: Store, _columns: Columns) -> Iterator[Row]:
    """Of every record the generations of the best rank, once each."""
    seen: set[str] = set()
    look = lookup(store)
    for file in _files(store):
        for number, record in enumerate(records(store, file)):
            try:
                paths, ranks = record["generations"], record["ranking"]
                best = [path for path, rank in zip(paths, ranks, strict=True) if rank == min(ranks)]
                best = [posixpath.normpath(path) for path in best]
            except (TypeError, KeyError, ValueError):
                yield bad_record(file, number)
                continue
            for path in best:
                if path not in seen:
                    seen.add(path)
                    yield photograph(look, as_text(path), path_of(path), record.get("prompt"))


def pairs(store: Store) -> Iterator[Pair]:
    """Each two generations of a record, or of the rows of a prompt; equal ranks are a tie."""
    for file in _files(store):
        for number, record in enumerate(records(store, file)):
            told = {"id_": f"{file}#{number:09d}", "where": f"record {number} of {file}"}
            yield from ranked(record, "generations", "ranking", **told)
    yield from sound(store, _tables(store), partial(_ranked_rows, store), labels.no_pair)


def images(store: Store) -> Iterator[LabelledImage]:
    """Every row of the Parquet files, with its overall rating, from 1 to 7."""
    tables = list(_tables(store))
    if not tables:
        raise InputError(
            f"source.path: no .parquet files in '{store.path}'; only those of ImageRewardDB hold "
            "ratings of single images"
        )
    yield from sound(store, tables, partial(_rated_rows, store), labels.no_image)


class _Rated(NamedTuple):
    """A row of ImageRewardDB as the model hub shows it: one image of a prompt."""

    number: int
    prompt_id: str
    prompt: str
    image: Ref
    rank: Any
    rating: Any


def _rows(store: Store, file: str) -> Iterator[_Rated]:
    names: list[str] = cells.schema_of(store, file).names
    wanted = [cells.pick(names, (name,), file, name) for name in _COLUMNS]
    held = "image" in names
    columns = wanted if held else [*wanted, cells.pick(names, ("image_path",), file, "image_path")]
    folder = posixpath.dirname(file)
    for number, row in enumerate(cells.rows_of(store, file, columns)):
        values = [cells.value(cell) for cell in row]
        prompt_id, prompt = (str(each or "") for each in values[:2])
        if held:
            image = Ref(file, number, "image")
        else:
            image = Ref(posixpath.join(folder, as_text(str(values[4] or ""))))
        yield _Rated(number, prompt_id, prompt, image, *values[2:4])


def _ranked_rows(store: Store, file: str) -> Iterator[Pair]:
    """The pairs of each prompt's rows, which follow one another."""
    seen: set[str] = set()
    for prompt_id, group in itertools.groupby(_rows(store, file), lambda row: row.prompt_id):
        rows, count = [], 0
        for row in group:
            count += 1
            if count <= MOST:
                rows.append(row)
        id_, where = cells.row_id(file, rows[0].number), f"prompt {prompt_id} of {file}"
        if prompt_id in seen:
            said = f"bad_record: the rows of {where} do not follow one another"
            yield labels.no_pair(id_, said)
            continue
        seen.add(prompt_id)
        for (i, one), (j, two) in itertools.combinations(enumerate(rows), 2):
            label = None
            if isinstance(one.rank, int | float) and isinstance(two.rank, int | float):
                label = 0.5 if one.rank == two.rank else float(one.rank < two.rank)
            found = Pair(one.prompt, one.image, two.image, label, id=f"{id_}/{i}-{j}")
            yield usable(found, where)
        if count > MOST:
            yield too_many(id_, where, count)


def _rated_rows(store: Store, file: str) -> Iterator[LabelledImage]:
    for row in _rows(store, file):
        values = {"prompt": row.prompt, "image": row.image, "score": row.rating}
        id_, where = cells.row_id(file, row.number), f"row {row.number} of {file}"
        yield labels.labelled_of(values, _RATED, id_=id_, where=where)


def _files(store: Store) -> Iterator[str]:
    names = (file.name for file in store.files())
    return (name for name in names if name.endswith(".json") and "/" not in name)


def _tables(store: Store) -> Iterator[str]:
    return (file.name for file in store.files() if file.name.endswith(".parquet"))


LAYOUT = Layout(
    photographs=photographs,
    pairs=pairs,
    images=images,
    tied_ranks=True,
    pairs_in=lambda names: {"generations", "ranking"} <= {*names} or {*_COLUMNS} <= {*names},
    images_in=lambda names: {*_COLUMNS} <= {*names},
)

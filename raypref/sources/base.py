"""What a layout is: how a dataset lies in a store, and which kinds of data it gives.

A layout only lists. The rows and references it gives say where an image's bytes are (a file, a
stretch of a file, a cell of a Parquet file), and `index.fetch` reads them: a worker that reads an
image knows nothing of layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from raypref.core.rows import Row
from raypref.sources.captions import Columns
from raypref.sources.prompts import Prompt
from raypref.sources.store import Store


class Ref(NamedTuple):
    """Where an image is: a file, or a cell of a Parquet file."""

    file: str
    row: int = 0
    column: str = ""  # empty: the file is the image


class Pair(NamedTuple):
    """Two images of one prompt and what people said."""

    prompt: str
    first: Ref
    second: Ref
    label: float  # 1 the first is preferred, 0 the second, 0.5 neither
    confidence: float | None = None  # how sure people were, where the dataset tells


@dataclass(frozen=True)
class Layout:
    """How a dataset is laid out. What it does not give is None.

    A function that lists raises InputError where the store does not hold this layout, and
    SourceError where a file that the listing needs cannot be read. One bad entry does neither: it
    is a row with a `problem`.

    Attributes:
        photographs: lists captioned photographs as rows of `rows.INDEX` with unique ids; the
            columns are names that the person gave.
        pairs: lists pairs that people judged. Files of a `Ref` are relative to the store, or, where
            they are images, to the folder of images that the person named. KeyError, TypeError
            and ValueError say too that the store does not hold this layout.
        prompts: lists the prompts of one file of the store.
        suffixes: ends of the names of files that hold such a dataset; they tell layouts apart.
        speaks: tells by a file's name whether it speaks for the layout too.
        beside: whether such a file still counts beside files of other layouts; None: it does.
        sampled: to list is to read these files whole, so a source's digest takes of each its
            name, size and both ends.
        advice: what a person can do when no photograph has a caption.
    """

    photographs: Callable[[Store, Columns], Iterator[Row]] | None = None
    pairs: Callable[[Store], Iterator[Pair]] | None = None
    prompts: Callable[[Store, str], Iterator[Prompt]] | None = None
    suffixes: tuple[str, ...] = ()
    speaks: Callable[[str], bool] | None = None
    beside: Callable[[Store, str, Columns], bool] | None = None
    sampled: bool = False
    advice: str = ""

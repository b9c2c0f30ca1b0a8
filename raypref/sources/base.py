"""What a layout is: how a dataset lies in a store, and which kinds of data it gives.

A layout only lists. The rows and references it gives say where an image's bytes are (a file, a
stretch of a file, a cell of a Parquet file), and `index.fetch` reads them: a worker that reads an
image knows nothing of layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from raypref.core.rows import Row
from raypref.sources.captions import Columns
from raypref.sources.prompts import Prompt
from raypref.sources.store import Store


class Ref(NamedTuple):
    """Where an image is: a file, a stretch of a file, or a cell of a table of images."""

    file: str
    row: int = 0  # of the cell; of a stretch its first byte
    column: str = ""  # empty: the file is the image, or a stretch of it is
    size: int | None = None  # bytes of the stretch


class Pair(NamedTuple):
    """Two images of one prompt and what people said; with a `problem` it cannot be used."""

    prompt: str
    first: Ref
    second: Ref
    label: float | None  # 1 the first is preferred, 0 the second, 0.5 neither; None: no label
    confidence: float | None = None  # how sure people were, where the dataset tells
    first_model: str | None = None  # the generator that made the first image
    second_model: str | None = None
    vote_share: float | None = None  # of the votes, those for the first, 0 to 1
    gap: float | None = None  # how much better the preferred image is, where the dataset tells
    id: str = ""  # unique in the source, the same at every reading
    problem: str = ""  # `reason: message`; the references may then be Ref("")


class LabelledImage(NamedTuple):
    """One image of a prompt and what people said; with a `problem` it cannot be used."""

    prompt: str
    image: Ref
    score: float | None  # 1 good, 0 bad, or any number; None: no label
    model: str | None = None  # the generator that made the image
    id: str = ""  # unique in the source, the same at every reading
    problem: str = ""  # `reason: message`; the reference may then be Ref("")


@dataclass(frozen=True)
class Layout:
    """How a dataset is laid out. What it does not give is None.

    A function that lists raises InputError where the store does not hold this layout, and
    SourceError where a file that the listing needs cannot be read. One bad entry does neither: it
    is a row with a `problem`.

    Attributes:
        photographs: lists captioned photographs as rows of `rows.INDEX` with unique ids; the
            columns are names that the person gave.
        pairs: lists pairs that people judged, one at a time: ties, pairs without a label and those
            with a problem too. Files of a `Ref` are relative to the store, or, where they are
            images, to the folder of images that the person named. KeyError, TypeError and
            ValueError say too that the store does not hold this layout.
        images: lists single images that people judged, in the same way.
        prompts: lists the prompts of one file of the store.
        tied_ranks: whether a tie among the pairs is two equal ranks: benchmarks of rewards leave
            these out.
        pairs_in: tells by the names of a file's columns or keys whether it holds labelled pairs
            of this layout; of a shard, by the endings of the members of its first sample.
        images_in: the same for labelled single images.
        suffixes: ends of the names of files that hold such a dataset; they tell layouts apart.
        speaks: tells by a file's name whether it speaks for the layout too.
        beside: whether such a file still counts beside files of other layouts; None: it does.
        sampled: to list is to read these files whole, so a source's digest takes of each its
            name, size and both ends.
        advice: what a person can do when no photograph has a caption.
        masks: whether rows of photographs have the columns of `rows.MASKS` too.
        pools: whether the photographs are images of comparisons, of which `columns.pool` names
            those that are listed.
    """

    photographs: Callable[[Store, Columns], Iterator[Row]] | None = None
    pairs: Callable[[Store], Iterator[Pair]] | None = None
    images: Callable[[Store], Iterator[LabelledImage]] | None = None
    prompts: Callable[[Store, str], Iterator[Prompt]] | None = None
    tied_ranks: bool = False
    pairs_in: Callable[[Collection[str]], bool] | None = None
    images_in: Callable[[Collection[str]], bool] | None = None
    suffixes: tuple[str, ...] = ()
    speaks: Callable[[str], bool] | None = None
    beside: Callable[[Store, str, Columns], bool] | None = None
    sampled: bool = False
    advice: str = ""
    masks: bool = False
    pools: bool = False

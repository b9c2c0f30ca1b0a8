"""Sources of captioned images: what there is, and the bytes of one entry.

`entries` lists without touching a pixel, in an order that depends on the content alone. An image
without a caption and a caption without an image are listed too: every input ends somewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pyarrow as pa
from pydantic import AfterValidator

from raypref.core.config import InputError, Location, Section, setting
from raypref.core.ledger import Ledger, part_name
from raypref.core.rows import INDEX, MASKS, Row
from raypref.core.schemes import scheme_of
from raypref.sources import cells
from raypref.sources.base import Layout
from raypref.sources.captions import Columns, is_index
from raypref.sources.found import is_mask, no_captions, nothing
from raypref.sources.layouts import REGISTRY, giving, known
from raypref.sources.pairs import recognise_images, recognise_pairs
from raypref.sources.reading import read
from raypref.sources.remembered import remembered
from raypref.sources.store import File, LocalStore, RemoteStore, SourceError, Store, locate

_SAMPLE = 2**16  # bytes at either end of a shard
_READERS = 8  # shards sampled side by side
_LAYOUT = known("photographs", "pairs", "images", others=("auto",))


def _absolute(roots: tuple[str, ...]) -> tuple[str, ...]:
    # Workers do not share the driver's working directory.
    return tuple(str(Path(root).expanduser().absolute()) for root in roots)


class SourceConfig(Section):
    """Where the images are."""

    path: Location = setting(
        ...,
        "folder, file or URI (s3://, gs://); tiny:world for the embedded photographs",
        affects_result=False,  # the digest of what it lists does
    )
    layout: Annotated[str, AfterValidator(_LAYOUT)] = setting(
        "auto",
        "how images and captions lie there: folder (captions.csv with file,caption per folder, or "
        "photo.txt, photo.caption or photo.json beside each photo, or metadata.csv or .jsonl), "
        "parquet, webdataset (.tar), jsonl, masked (a folder, masks beside), brushdata (.tar with "
        "masks), hpdv3 (all.json), pickapic, civitai (prompts.json), imagereward, or one of your "
        "own (docs/extending.md); auto tells the first four apart; of labelled pairs: labelled, "
        "pickapic, hpdv2, hpdv3, imagereward, webdataset, all told apart",
    )
    roots: Annotated[tuple[str, ...], AfterValidator(_absolute)] = setting(
        (),
        "folders of this machine that links and absolute paths in the source may lead to; no other "
        "file outside it is read",
        affects_result=False,  # the digest of what it lists does
    )
    image_column: str = setting(
        "",
        "column or key with the image or its path, in Parquet, JSONL and CSV; empty looks for it",
        affects_result=False,  # the digest of what it lists does
    )
    caption_column: str = setting(
        "",
        "column or key with the caption, in Parquet, JSON, JSONL and CSV; empty looks for it",
        affects_result=False,  # the digest of what it lists does
    )
    pool: Literal["winners", "all"] = setting(
        "winners",
        "of Pick-a-Pic, which images are taken as photographs: winners, those that people "
        "preferred, once each; all, both of every comparison, once per caption (released code)",
        affects_result=False,  # the digest of what it lists does
    )
    pool_size: int = setting(
        0,
        "pairs are made of the N photographs of best PickScore alone, of those that are left "
        "(released code, of Pick-a-Pic: 4096); 0: of all",
        affects_result=False,  # of the pairs alone, whose ledger notes it
        ge=0,
    )
    license: str = setting(
        "other",
        "licence of the photographs, for the card of the pairs, as the model hub spells it",
        affects_result=False,
        pattern=r"^[a-z0-9.-]+$",
    )
    limit: int = setting(0, "read only the first N entries; 0 reads all", ge=0)
    max_caption: int = setting(2000, "longest caption taken, in characters", ge=1)

    def store(self) -> Store:
        """Where its files are read from.

        Raises:
            InputError: there is nothing at `path`.
        """
        if embedded := scheme_of(self.path):
            scheme, name = embedded
            return LocalStore(self.path, str(scheme.photographs(name)), None)
        for root in self.roots:
            if not Path(root).is_dir():
                raise InputError(f"source.roots: there is no folder '{root}'")
        return locate(self.path, self.roots)

    def columns(self) -> Columns:
        """The names given to columns."""
        return Columns(self.image_column, self.caption_column, self.pool)


def entries(config: SourceConfig) -> Iterator[Row]:
    """List the entries (schema `rows.INDEX`); the ids are unique.

    Raises:
        InputError: nothing there, or it is not what `layout` says.
    """
    store = config.store()
    try:
        listed = _listed(config, store, _layout(config, store))
        for row in itertools.islice(listed, config.limit or None):
            yield _short(row, config.max_caption)
    except SourceError as error:  # a table or shard that the listing itself needs
        raise InputError(f"source.path: '{config.path}': {error}") from None


def gives_masks(config: SourceConfig) -> bool:
    """Whether the entries have masks: the named layout lists them."""
    return config.layout in REGISTRY and REGISTRY[config.layout].masks


def index_schema(config: SourceConfig) -> pa.Schema:
    """The columns of the entries."""
    return pa.schema([*INDEX, *MASKS]) if gives_masks(config) else INDEX


def _listed(config: SourceConfig, store: Store, layout: str) -> Iterator[Row]:
    listed = _photographs(layout, config, store)
    if layout == "folder" and config.layout == "auto":
        rows = list(listed)  # in memory anyway: they are sorted
        # Photographs without a single caption, and an index of them: it has the captions.
        if not any(row["caption"] for row in rows) and _indexes(config, store):
            return _photographs("jsonl", config, store)
        return iter(rows)
    return listed


def _photographs(layout: str, config: SourceConfig, store: Store) -> Iterator[Row]:
    listing = REGISTRY[layout].photographs
    if listing is None:
        names = ", ".join(giving("photographs"))
        raise InputError(
            f"source.layout: {layout} gives labelled pairs, no photographs; layouts of "
            f"photographs are {names}"
        )
    if config.pool != "winners" and not REGISTRY[layout].pools:
        able = ", ".join(name for name, other in REGISTRY.items() if other.pools)
        raise InputError(f"source.pool={config.pool} is for {able}; this source is {layout}")
    return listing(store, config.columns())


def _indexes(config: SourceConfig, store: Store) -> bool:
    for file in store.files():
        if file.name.endswith(".jsonl"):
            with suppress(SourceError):
                if is_index(store, file.name, config.columns()):
                    return True
    return False


def _short(row: Row, longest: int) -> Row:
    """The entry, its caption cut where it is too long: such a row is dropped later."""
    caption = row["caption"]
    if caption is None or len(caption) <= longest:
        return row
    problem = f"caption_too_long: {len(caption)} characters; source.max_caption is {longest}"
    return row | {"caption": caption[:longest], "problem": row["problem"] or problem}


def _usable(config: SourceConfig, *, bare: bool) -> Iterator[Row]:
    """The entries; InputError in the end when there were none, or none with a caption.

    Args:
        config: the source.
        bare: whether it will do without captions: they are written later.
    """
    count, captions, problems, first = 0, 0, 0, ""
    for row in entries(config):
        yield row
        if is_mask(row):
            continue
        count += 1
        captions += bool(row["caption"])
        problems += row["problem"] is not None
        first = first or row["problem"] or ""
    if captions or (bare and problems < count):
        _counted[config] = Counted(count, captions)
        return
    store = config.store()
    if not count:
        raise InputError(
            f"source.path: no photographs in '{config.path}', {nothing(store)}; expected image "
            "files with a captions.csv or .txt/.json sidecars, .parquet files, .tar shards, or a "
            f".jsonl file; source.layout names other layouts{_labels(store)}"
        )
    layout = _layout(config, store)
    loose, advice = layout == "folder", REGISTRY[layout].advice
    said = no_captions(store, count, problems, first, loose=loose, advice=advice)
    raise InputError(said + _labels(store))


def _labels(store: Store) -> str:
    """What to do where a source holds labelled data instead of photographs; else empty."""
    for recognised, kind in ((recognise_pairs, "labelled"), (recognise_images, "images")):
        with suppress(InputError):
            return f"; it holds labels (layout {recognised(store)}): add pairs.kind={kind}"
    return ""


class Counted(NamedTuple):
    """How many entries a source lists."""

    entries: int
    captions: int  # entries with a caption


_counted: dict[SourceConfig, Counted] = {}  # of sources that this process has listed whole


def counts_of(config: SourceConfig) -> Counted | None:
    """How many entries a source lists; None where that is unknown without reading it whole.

    It is known once `digest` has listed the source.
    """
    return _counted.get(config)


def digest(config: SourceConfig, *, bare: bool = False) -> str:
    """16 hex digits that change when an entry, a caption or an image's size changes.

    To list shards is to read them, which would cost what the first pass costs: of each its name,
    size and both ends are taken (`Layout.sampled`).

    Args:
        config: the source.
        bare: whether it will do without captions.

    Raises:
        InputError: nothing there, or no captions at all; says what was looked for.
    """
    return remembered(config, lambda: _digest(config, bare))


def _digest(config: SourceConfig, bare: bool) -> str:
    store, total = config.store(), hashlib.sha256()
    layout = REGISTRY[_layout(config, store)]
    if not layout.sampled:
        names = index_schema(config).names
        for row in _usable(config, bare=bare):
            total.update(json.dumps([row[name] for name in names]).encode())
        return total.hexdigest()[:16]
    files = [file for file in store.files() if file.name.endswith(layout.suffixes)]
    if not files:
        ends = " or ".join(layout.suffixes)
        raise InputError(f"source.path: no {ends} files in '{config.path}'")
    if config.caption_column:
        total.update(config.caption_column.encode())
    with ThreadPoolExecutor(_READERS) as pool:
        for file, sample in zip(files, pool.map(partial(_ends, store), files), strict=True):
            total.update(json.dumps(file).encode() + sample)
    return total.hexdigest()[:16]


def _ends(store: Store, file: File) -> bytes:
    try:
        with store.open(file.name) as opened:
            start = opened.read(_SAMPLE)
            opened.seek(max(0, file.size - _SAMPLE))
            return start + opened.read(_SAMPLE)
    except (OSError, SourceError):
        if isinstance(store, RemoteStore):
            raise
        return b""  # it is dropped later


def write_index(
    config: SourceConfig, ledger: Ledger, *, part_rows: int, bare: bool = False
) -> None:
    """Fill a ledger with the entries, a part at a time; what a killed run left is made again.

    Args:
        config: the source.
        ledger: gets a row per entry.
        part_rows: rows per part.
        bare: whether it will do without captions.

    Raises:
        InputError: nothing there, or no captions at all; says what was looked for.
    """
    ledger.clear()
    ledger.begin()
    listed, total, schema = _usable(config, bare=bare), 0, index_schema(config)
    for number in itertools.count():
        rows = list(itertools.islice(listed, part_rows))
        if not rows:
            break
        ledger.write_part(pa.Table.from_pylist(rows, schema=schema), part_name(f"{number:08d}"))
        total += len(rows)
    ledger.commit(expected=total, counts={"listed": total})


def fetch(row: Row, store: Store, *, max_bytes: int) -> bytes:
    """The encoded bytes of one entry, of whatever layout.

    A row says where they are: `column` names a cell of the Parquet file `uri`, in row `member`.
    Else `member` is the first of `size` bytes within the file `uri`. Else the file is the image.

    Args:
        row: the entry.
        store: the source's.
        max_bytes: a larger image is not read.

    Raises:
        SourceError: the image is missing, too large, unreadable or outside the source.
    """
    if row["column"] is not None:
        column, member = row["column"], row["member"]
        return cells.image(store, row["uri"], column, member, max_bytes=max_bytes)
    if row["member"] is not None:
        start, size = row["member"], row["size"]
        return read(store, row["uri"], max_bytes=max_bytes, start=start, size=size)
    return read(store, row["uri"], max_bytes=max_bytes)


def _layout(config: SourceConfig, store: Store) -> str:
    """The one asked for, or the one that the files speak for: those in the folder, or below it."""
    if config.layout != "auto":
        return config.layout
    layouts = giving("photographs")
    if store.only is not None:
        for name, layout in layouts.items():
            if store.only.endswith(layout.suffixes):
                return name
        suffixes = (end for layout in layouts.values() for end in layout.suffixes)
        ends = ", ".join(dict.fromkeys(suffixes))
        if labels := _labels(store):
            raise InputError(f"source.path: '{store.path}' holds no photographs{labels}")
        raise InputError(f"source.path: '{store.path}' is a file, but not one of {ends}")
    direct: dict[str, str] = {}  # layout -> the first file that speaks for it
    deeper: dict[str, str] = {}
    for file in store.files():
        if (spoken := _spoken_for(file.name, layouts)) is not None:
            (deeper if "/" in file.name else direct).setdefault(spoken, file.name)
    doubtful = {name for name, layout in layouts.items() if layout.beside}
    for found in (direct, deeper):
        if ({*direct, *deeper} if found is direct else set(found)) - doubtful:
            for name, first in list(found.items()):
                beside = layouts[name].beside
                if beside and not beside(store, first, config.columns()):
                    del found[name]
    kinds = direct or deeper
    if len(kinds) > 1:
        said = " and ".join(sorted(kinds))
        raise InputError(
            f"source.path: '{store.path}' looks like {said}; name one of them with source.layout"
        )
    return next(iter(kinds)) if kinds else "folder"


def _spoken_for(name: str, layouts: dict[str, Layout]) -> str | None:
    """The layout that a file speaks for: the first one registered."""
    for layout, how in layouts.items():
        if (how.speaks and how.speaks(name)) or name.endswith(how.suffixes):
            return layout
    return None

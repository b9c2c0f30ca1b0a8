"""What a listing found, in a few lines for people, before any model runs."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator

from raypref.core.rows import Row
from raypref.sources.captions import sidecar_names
from raypref.sources.layouts.folder import IMAGE_SUFFIXES
from raypref.sources.leftout import APPLE_DOUBLE, made_of
from raypref.sources.store import Store

_MANY = 0.1  # of the photographs without a caption: more is no accident
_SHOWN = 3  # of the folders, suffixes or reasons in a line
_LINE = 160  # characters of a problem
_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")


def no_captions(
    store: Store, count: int, problems: int, first: str, *, loose: bool, advice: str
) -> str:
    """Why a source cannot be used that has entries and not one caption.

    Args:
        store: where it lies.
        count: of its entries.
        problems: how many of them cannot be used.
        first: the first such problem, as `reason: message`.
        loose: whether the photographs are files of their own.
        advice: what the layout asks for.
    """
    said = [f"source.path: {count} photographs in '{store.path}' but not one caption"]
    if problems == count:
        said = [f"source.path: not one of {count} entries in '{store.path}' can be used"]
    if problems:
        said.append(first.partition(": ")[2][:_LINE])
    if problems < count:
        photos = {file.name for file in store.files() if _is_image(file.name)}
        written = "or captions.model=OWNER/REPO names a vision-language model that writes them"
        said += [_beside(store, photos) if loose else "", advice, written]
    return "; ".join(filter(None, said))


def findings(rows: Iterable[Row], store: Store, *, captioned: bool = False) -> Iterator[str]:
    """Lines about photographs without a caption and files left out; none when all is well.

    Args:
        rows: the index: columns `id`, `uri`, `caption` and `problem`.
        store: of the source.
        captioned: whether missing captions are written, so that none needs to be told of.
    """
    count, bare = 0, set()
    reasons: Counter[str] = Counter()
    seen: set[str] = set()
    no_caption = 0
    for row in rows:
        count += 1
        if row["problem"] is not None:
            reasons[row["problem"].partition(":")[0]] += 1
        elif not captioned and not (row["caption"] or "").strip():
            no_caption += 1
            if row["id"] == row["uri"]:  # a file of its own
                bare.add(row["uri"])
        if row["id"] == row["uri"]:
            seen.add(row["uri"])
    made = {photo for photo in bare if made_of(photo, seen)}
    bare, no_caption, count = bare - made, no_caption - len(made), count - len(made)
    if no_caption > _MANY * count:
        said = f"{no_caption} of {count} photographs have no caption and are not used"
        beside = _beside(store, bare) if bare else ""
        yield "; ".join(part for part in (said, beside) if part)
    if made:
        yield (
            f"{len(made)} images are not photographs: {min(made)} lies beside "
            f"{made_of(min(made), seen)} and has no caption of its own"
        )
    if reasons:
        yield f"{sum(reasons.values())} of {count} entries cannot be used: {_counted(reasons)}"
    left_out = Counter(
        "hidden" if by == name else f"in {by}"
        for by, name in store.left_out()
        if _is_image(name) and not posixpath.basename(name).startswith(APPLE_DOUBLE)
    )
    if left_out:
        yield f"{sum(left_out.values())} image files are left out: {_counted(left_out)}"


def _counted(counts: Counter[str]) -> str:
    """The largest counts: `4 in .Trash-1000, 2 in @eaDir and 3 others`."""
    shown = counts.most_common(_SHOWN)
    rest = sum(counts.values()) - sum(number for _, number in shown)
    listed = ", ".join(f"{number} {name}" for name, number in shown)
    return f"{listed} and {rest} others" if rest else listed


def _beside(store: Store, photos: set[str]) -> str:
    """What lies beside photographs, in a few words: files of the same name, or tables."""
    stems = {posixpath.splitext(photo)[0] for photo in photos} | photos
    folders = {posixpath.dirname(photo) for photo in photos} | {""}
    known = {name for photo in photos for name in sidecar_names(photo)} if photos else set()
    ends: Counter[str] = Counter()
    tables: list[str] = []
    for name, _ in store.files():
        stem, end = posixpath.splitext(name)
        if _is_image(name) or name in photos:
            continue
        if stem in stems:
            empty = f"{end} files without a caption" if name in known else f"{end} files"
            ends[empty] += 1
        elif end in _TABLES and posixpath.dirname(name) in folders:
            tables.append(name)
    if ends:
        return f"beside them lie {_counted(ends)}"
    if tables:
        return f"beside them lies {tables[0]}" + (
            f" and {len(tables) - 1} other tables" if tables[1:] else ""
        )
    return ""


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES

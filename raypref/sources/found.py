"""What a listing found, in a few lines for people, before any model runs."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator

from raypref.core.rows import Row, index_row
from raypref.sources.captions import ENDS, sidecar_names
from raypref.sources.layouts.folder import IMAGE_SUFFIXES
from raypref.sources.leftout import APPLE_DOUBLE
from raypref.sources.masks import REASON
from raypref.sources.store import Store

_MANY = 0.1  # of the photographs without a caption: more is no accident
_SHOWN = 3  # of the folders, suffixes or reasons in a line
_LINE = 160  # characters of a problem
_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")
# Formats of images that nothing here reads: of cameras, and of drawing programs.
_UNREAD = frozenset(
    (
        *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"),
        *(".exr", ".hdr", ".jp2", ".j2k", ".jpf", ".psd", ".svg", ".xcf"),
    )
)


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


def is_mask(row: Row) -> bool:
    """Whether an entry is a picture that was made of a photograph."""
    return (row["problem"] or "").startswith(f"{REASON}:")


def findings(rows: Iterable[Row], store: Store, *, captioned: bool = False) -> Iterator[str]:
    """Lines about photographs without a caption and files left out; none when all is well.

    Args:
        rows: the index: columns `id`, `uri`, `caption` and `problem`.
        store: of the source.
        captioned: whether missing captions are written, so that none needs to be told of.
    """
    count, bare = 0, set()
    shared: list[str] = []  # images that have their caption from a file of another image's too
    before: Row = index_row("", "", None)
    reasons: Counter[str] = Counter()
    masks: list[str] = []  # what is wrong with each picture that was made of a photograph
    no_caption = 0
    for row in rows:
        if is_mask(row):
            masks.append(row["problem"])
            continue
        count += 1
        if _same_caption(before, row):
            shared.append(f"{before['id']} and {row['id']}")
        before = row
        if row["problem"] is not None:
            reasons[row["problem"].partition(":")[0]] += 1
        elif not captioned and not (row["caption"] or "").strip():
            no_caption += 1
            if row["id"] == row["uri"]:  # a file of its own
                bare.add(row["uri"])
    if no_caption > _MANY * count:
        said = f"{no_caption} of {count} photographs have no caption and are not used"
        beside = _beside(store, bare) if bare else ""
        yield "; ".join(part for part in (said, beside) if part)
    if masks:
        first = min(masks).partition(": ")[2][:_LINE]
        yield f"{len(masks)} images are not photographs and not used: {first}"
    if reasons:
        yield f"{sum(reasons.values())} of {count} entries cannot be used: {_counted(reasons)}"
    if shared:
        yield (
            f"{len(shared)} captions belong to two images that differ in their suffix, and both "
            f"are used: {shared[0]}; if one is a mask, move it to a folder masks/"
        )
    unread = Counter(
        end for name, _ in store.files() if (end := posixpath.splitext(name)[1].lower()) in _UNREAD
    )
    if unread:
        yield (
            f"{sum(unread.values())} image files have formats that are not read: "
            f"{_counted(unread)}; convert them to JPEG or PNG"
        )
    left_out = Counter(
        "hidden" if by == name else f"in {by}"
        for by, name in store.left_out()
        if _is_image(name) and not posixpath.basename(name).startswith(APPLE_DOUBLE)
    )
    if left_out:
        yield f"{sum(left_out.values())} image files are left out: {_counted(left_out)}"


def nothing(store: Store) -> str:
    """What lies in a source that has no photograph, in a few words."""
    ends = Counter(posixpath.splitext(name)[1] or "plain" for name, _ in store.files())
    return f"there are only {_counted(ends)} files" if ends else "there are no files"


def _same_caption(before: Row, row: Row) -> bool:
    """Whether two entries that follow one another are a.jpg and a.png with one caption."""
    stems = [posixpath.splitext(each["id"].partition("//")[0]) for each in (before, row)]
    used = row["caption"] and not before["problem"] and not row["problem"]
    same = stems[0][0] == stems[1][0] and stems[0][1] != stems[1][1]
    return bool(used and same and before["caption"] == row["caption"])


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
    names = {posixpath.basename(stem) for stem in stems}
    ends: Counter[str] = Counter()
    elsewhere: list[str] = []  # texts of the same names in other folders
    images: set[str] = set()  # their stems
    tables: list[str] = []
    for name, _ in store.files():
        stem, end = posixpath.splitext(name)
        plain, second = posixpath.splitext(stem)
        if _is_image(name) or name in photos:
            images.add(stem)
        elif stem in stems:
            empty = f"{end} files without a caption" if name in known else f"{end} files"
            ends[empty] += 1
        elif second and plain in stems:
            ends[f"{second}{end} files"] += 1
        elif end.lower() in _TABLES and posixpath.dirname(name) in folders:
            tables.append(name)
        elif posixpath.basename(stem) in names and end.lower() in ENDS:
            elsewhere.append(name)
    if ends:
        return f"beside them lie {_counted(ends)}"
    if tables:
        return f"beside them lies {tables[0]}" + (
            f" and {len(tables) - 1} other tables" if tables[1:] else ""
        )
    others = Counter(
        posixpath.join(posixpath.dirname(name), f"*{end}")
        for name in elsewhere
        if (split := posixpath.splitext(name)) and split[0] not in images and (end := split[1])
    )
    if others:
        return f"files of their names lie in other folders: {_counted(others)}"
    return ""


def _is_image(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES

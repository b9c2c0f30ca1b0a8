"""Reading files of a store: whole or in stretches, found by the names that tables give them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from typing import TypeVar

import pyarrow as pa

from raypref.core.config import InputError
from raypref.core.rows import Row, index_row
from raypref.sources.names import Alike, walk_to
from raypref.sources.store import LocalStore, RemoteStore, SourceError, Store

SCAN_BYTES = 2**20
LINE = 2**24  # characters of a line of text
# Of a field too: a longer prompt than `source.max_caption` is one dropped row, and not the file.
csv.field_size_limit(LINE)
PACKED = ".gz"
_DAMAGED = "#//damaged"  # no entry of a file has this id
FOLDERS = 16  # whose listings are kept at a time
# First bytes of a file that stands for one not fetched -> what it is and what fetches it.
_POINTERS = {
    b"version https://git-lfs.github.com/spec/": "a Git LFS pointer; run 'git lfs pull'",
    b"/annex/objects/": "a git-annex pointer; run 'git annex get'",
}

T = TypeVar("T")
Look = Callable[[str], tuple[str, int | None]]  # from a name to the file that is there, its bytes


def read(
    store: Store, name: str, *, max_bytes: int, start: int = 0, size: int | None = None
) -> bytes:
    """The bytes of a file, or of a stretch of it.

    Raises:
        SourceError: the file is missing, too large, unreadable or outside the store.
        OSError: an object store failed.
    """
    whole = store.size(name)
    if whole is None:
        raise SourceError("missing_file", f"there is no file {name}")
    wanted = whole if size is None else size
    if min(start, wanted) < 0 or start + wanted > whole:
        raise SourceError("truncated_archive", f"{name} ends before byte {start + wanted}")
    if wanted > max_bytes:
        raise SourceError("too_many_bytes", f"{wanted} bytes, more than {max_bytes}")
    try:
        with store.open(name) as file:
            file.seek(start)
            data = file.read(wanted)
    except (OSError, pa.ArrowException) as error:
        if isinstance(store, RemoteStore):
            raise  # the object exists, so the network failed: the same command resumes
        raise SourceError("unreadable_file", f"{name}: {error}") from None
    if size is None and (what := pointer(data)):
        raise SourceError("unreadable_file", f"{name} is {what}")
    return data


def pointer(data: bytes) -> str | None:
    """What the content is where it only stands for a file that was not fetched."""
    return next((what for start, what in _POINTERS.items() if data.startswith(start)), None)


def damage(store: Store, name: str, said: str) -> SourceError:
    """The reason why a file of many entries is dropped.

    Args:
        store: where it lies.
        name: the file's.
        said: a sentence that names it, for where its first bytes do not tell more.
    """
    said = " ".join(said.split())  # libraries write several lines
    try:
        with store.open(name) as file:
            start = file.read(64)
    except (OSError, SourceError, pa.ArrowException):
        return SourceError("unreadable_file", said)
    what = pointer(start) if start else "empty"
    return SourceError("unreadable_file", f"{name} is {what}" if what else said)


def sound_files(
    store: Store, files: Iterable[str], rows: Callable[[str], Iterator[Row]]
) -> Iterator[Row]:
    """The rows of each file. A file that cannot be read becomes one dropped row, with the reason.

    Raises:
        InputError: not one of them can be read.
    """
    yield from sound(store, files, rows, _dropped)


def _dropped(id_: str, problem: str) -> Row:
    return index_row(id_, id_.removesuffix(_DAMAGED), None, problem=problem)


def sound(
    store: Store,
    files: Iterable[str],
    entries: Callable[[str], Iterator[T]],
    dropped: Callable[[str, str], T],
) -> Iterator[T]:
    """The entries of each file, and one for each file that cannot be read.

    Args:
        store: where they lie.
        files: their names.
        entries: lists those of a file.
        dropped: makes the entry of a damaged file of its id and the problem.

    Raises:
        InputError: not one of them can be read.
    """
    damaged: list[SourceError] = []
    left: list[T] = []
    any_sound = False
    for file in files:
        try:
            for entry in entries(file):
                yield entry
                any_sound = True
            any_sound = True
        except SourceError as error:
            damaged.append(error)
            said = f"{error.reason}: {error.message}"
            left.append(dropped(file + _DAMAGED, said))
    if damaged and not any_sound:
        raise InputError(f"source.path: '{store.path}': {damaged[0].message}")
    yield from left


def scan(store: Store, name: str) -> io.BufferedReader:
    """A file to be read from its beginning to its end: fetched in large pieces."""
    return io.BufferedReader(store.open(name), SCAN_BYTES)  # type: ignore[arg-type]


def text_lines(
    store: Store, name: str, newline: str | None = None, errors: str = "strict"
) -> Iterator[str]:
    """The lines of a text file in UTF-8, without the byte order mark that spreadsheets write.

    Args:
        store: where it lies.
        name: the file's; one that ends in .gz is unpacked line by line.
        newline: as for `open`.
        errors: as for `open`.

    Raises:
        SourceError: it is not UTF-8, has a line too long for memory, or cannot be read.
        OSError: an object store failed.
    """
    try:
        with io.TextIOWrapper(
            unpacked(store, name), encoding="utf-8-sig", newline=newline, errors=errors
        ) as text:
            while line := text.readline(LINE):
                if len(line) == LINE and line[-1] not in "\r\n":
                    said = f"{name} has a line of more than {LINE} characters"
                    raise SourceError("too_many_bytes", said)
                yield line
    except UnicodeDecodeError as error:
        raise SourceError("bad_encoding", f"{name} is not UTF-8 text: {error}") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise damage(store, name, f"{name} cannot be unpacked: {error}") from None
    except OSError as error:
        if isinstance(store, RemoteStore):
            raise  # a network failure: the same command resumes
        raise SourceError("unreadable_file", f"{name} cannot be read: {error}") from None


def csv_fault(error: csv.Error) -> str:
    """What is wrong with a table that `csv` cannot read, and its fix."""
    said = str(error)
    if "field limit" in said:
        return f"a field has more than {LINE} characters; shorten it, or close its quote"
    if "end of data" in said:
        return f"{said}; a quote is left open"
    if "expected after" in said:
        return f"{said}; a quote is left open or stands in the middle of a field"
    return said


def unpacked(store: Store, name: str) -> io.BufferedReader:
    """A file to be read from its beginning to its end, unpacked where its name ends in .gz."""
    file = scan(store, name)
    if not name.endswith(PACKED):
        return file
    return io.BufferedReader(gzip.GzipFile(fileobj=file), SCAN_BYTES)


def shown(store: Store, name: str) -> str:
    """A file's name as the person would type it."""
    return store.path if name == store.only else posixpath.join(store.path, name)


def file_digest(store: Store, name: str) -> str:
    """Sha256 of a file's bytes in hexadecimal; empty for one that cannot be read: it is dropped.

    Raises:
        OSError: an object store failed.
    """
    try:
        with store.open(name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except (OSError, SourceError):
        if isinstance(store, RemoteStore):
            raise
        return ""


def lookup(store: Store) -> Look:
    """Finds files that entries name: the name of the file that is there, and its bytes.

    The name is the one given where there is no such file, and the bytes are None. The exact name
    wins over one that differs in Unicode form, slashes or letter case. Of an object store whole
    folders are listed: one request a thousand files, not one each.
    """
    sized = _sizes(store)

    @lru_cache(FOLDERS)
    def listing(folder: str) -> Alike:
        try:
            return Alike(store.names(folder))
        except (SourceError, OSError, ValueError):  # no folder, or not one of this store
            return Alike(())

    def look(name: str) -> tuple[str, int | None]:
        size = sized(name)
        if size is not None:
            return name, size
        other = walk_to(name, listing)
        return (name, None) if other is None else (other, sized(other))

    return look


def _sizes(store: Store) -> Callable[[str], int | None]:
    if isinstance(store, LocalStore):
        return partial(_size, store)
    listing = lru_cache(FOLDERS)(store.sizes)

    def size(name: str) -> int | None:
        try:
            return listing(posixpath.dirname(name)).get(name)
        except SourceError:
            return None

    return size


def _size(store: Store, name: str) -> int | None:
    try:
        return store.size(name)
    except SourceError:  # it is dropped when it is read
        return None

"""Where a source lies: a local folder, a single file, or a prefix of an object store.

All reading of a source goes through here: names are relative to the place, none leads out of it.
"""

from __future__ import annotations

import io
import logging
import os
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import pyarrow as pa
from pyarrow import fs as pafs

from raypref.config import InputError

log = logging.getLogger(__name__)

SCAN_BYTES = 2**20
FOLDERS = 16  # of an object store whose listings are kept at a time


class File(NamedTuple):
    """A file of a place."""

    name: str  # relative to the place
    size: int  # bytes


class SourceError(Exception):
    """An entry cannot be read; it becomes a reject.

    Attributes:
        reason: a short fixed word.
        message: a sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def read(
    place: Place, name: str, *, max_bytes: int, start: int = 0, size: int | None = None
) -> bytes:
    """The bytes of a file, or of a stretch of it.

    Raises:
        SourceError: the file is missing, too large, unreadable or outside the place.
        OSError: an object store failed.
    """
    whole = place.size(name)
    if whole is None:
        raise SourceError("missing_file", f"there is no file {name}")
    wanted = whole if size is None else size
    if min(start, wanted) < 0 or start + wanted > whole:
        raise SourceError("truncated_archive", f"{name} ends before byte {start + wanted}")
    if wanted > max_bytes:
        raise SourceError("too_many_bytes", f"{wanted} bytes, more than {max_bytes}")
    try:
        with place.open(name) as file:
            file.seek(start)
            return file.read(wanted)
    except (OSError, pa.ArrowException) as error:
        if isinstance(place, RemotePlace):
            raise  # the object is there: it is the network, and the job goes on when started again
        raise SourceError("unreadable_file", f"{name}: {error}") from None


def scan(place: Place, name: str) -> io.BufferedReader:
    """A file to be read from its beginning to its end: fetched in large pieces."""
    return io.BufferedReader(place.open(name), SCAN_BYTES)  # type: ignore[arg-type]


def sizes(place: Place) -> Callable[[str], int | None]:
    """Tells the bytes of files that entries name; None where there is none in this place.

    Of an object store whole folders are listed: one request a thousand files, not one each.
    """
    if isinstance(place, LocalPlace):
        return partial(_size, place)
    listing = lru_cache(FOLDERS)(place.sizes)

    def size(name: str) -> int | None:
        try:
            return listing(posixpath.dirname(name)).get(name)
        except SourceError:
            return None

    return size


def _size(place: Place, name: str) -> int | None:
    try:
        return place.size(name)
    except SourceError:  # it will be a reject when it is read
        return None


def locate(path: str) -> Place:
    """The place at a local path or URI.

    Raises:
        InputError: there is no such place.
    """
    if "://" in path:
        return _remote(path)
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:  # of whose home
        raise InputError(f"source.path: '{path}': {error}") from None
    if not root.exists():
        raise InputError(f"source.path: there is no folder or file '{path}'")
    if root.is_dir():
        return LocalPlace(path, str(root), None)
    return LocalPlace(path, str(root.parent), root.name)


@dataclass(frozen=True)
class LocalPlace:
    """A folder of this machine, or of a file system that all nodes share."""

    path: str  # as the user gave it
    base: str
    only: str | None  # the one file that counts, where the user named a file

    def files(self) -> Iterator[File]:
        """All files, sorted in each folder, the folder's own before those of its folders.

        A name that is not UTF-8 comes escaped, and no file has that name. A link that leads nowhere
        is listed too, with no bytes; one to a folder is not followed.

        Raises:
            InputError: a folder cannot be listed.
        """
        if self.only is not None:
            yield self._file(Path(self.base, self.only))
            return
        for folder, below, names in os.walk(self.base, onerror=_unlisted):
            below.sort()
            for name in below:
                if Path(folder, name).is_symlink():
                    _tell_of_link(str(Path(folder, name)))
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() or not path.exists():  # no pipe
                    yield self._file(path)

    def _file(self, path: Path) -> File:
        name = os.fsencode(path.relative_to(self.base).as_posix())
        size = path.stat().st_size if path.exists() else 0
        return File(name.decode("utf-8", "backslashreplace"), size)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none. SourceError when the name leads out."""
        self._check(name)
        path = Path(self.base, name)
        try:
            return path.stat().st_size if path.is_file() else None
        except (OSError, ValueError):  # no file can have such a name
            return None

    def _check(self, name: str) -> None:
        """All links are followed first."""
        try:
            path = _real(os.path.join(self.base, name))  # noqa: PTH118
        except (OSError, ValueError):  # a name that no file can have, here or elsewhere
            return
        if not path.startswith(_real(self.base)):
            raise SourceError("outside_root", f"{name} points outside the source's folder")

    def open(self, name: str) -> IO[bytes]:
        """The file, to be read and sought in."""
        self._check(name)
        return Path(self.base, name).open("rb")


def _unlisted(error: OSError) -> NoReturn:
    raise InputError(f"source.path: the folder {error.filename} cannot be listed: {error.strerror}")


@lru_cache  # once for each
def _tell_of_link(path: str) -> None:
    log.warning("%s is a link to a folder and is not followed; what is there is left out", path)


def _real(path: str) -> str:
    """A path with all links followed, and a slash at its end."""
    return os.path.join(os.path.realpath(path), "")  # noqa: PTH118


@dataclass(frozen=True)
class RemotePlace:
    """A prefix of an object store, through pyarrow's file systems."""

    path: str
    fs: pafs.FileSystem = field(hash=False, compare=False)  # told by the path
    base: str
    only: str | None

    def files(self) -> Iterator[File]:
        """All objects, sorted."""
        if self.only is not None:
            found = [self.fs.get_file_info(f"{self.base}/{self.only}")]
        else:
            found = self.fs.get_file_info(pafs.FileSelector(self.base, recursive=True))
        start = len(self.base) + 1
        yield from sorted(File(info.path[start:], info.size) for info in found if info.is_file)

    def size(self, name: str) -> int | None:
        """Bytes of an object; None where there is none. SourceError when the name leads out."""
        self._check(name)
        info = self.fs.get_file_info(f"{self.base}/{name}")
        return info.size if info.is_file else None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the objects right below a folder. SourceError when its name leads out."""
        self._check(posixpath.join(folder, "any"))
        where = f"{self.base}/{folder}".rstrip("/")
        found = self.fs.get_file_info(pafs.FileSelector(where, allow_not_found=True))
        start = len(self.base) + 1
        return {info.path[start:]: info.size for info in found if info.is_file}

    def _check(self, name: str) -> None:
        """An object store knows no links, only names."""
        if not posixpath.normpath(f"/base/{name}").startswith("/base/") or name.startswith("/"):
            raise SourceError("outside_root", f"{name} points outside the source's folder")

    def open(self, name: str) -> IO[bytes]:
        """The object; what is read is fetched, not more."""
        self._check(name)
        return self.fs.open_input_file(f"{self.base}/{name}")


Place = LocalPlace | RemotePlace


def _remote(uri: str) -> Place:
    try:
        fs, path = pafs.FileSystem.from_uri(uri)
        info = fs.get_file_info(path.rstrip("/"))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"source.path: '{uri}' cannot be reached: {error}") from None
    if isinstance(fs, pafs.LocalFileSystem):  # where there are links, which must be followed
        return locate(path)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"source.path: there is no folder or file '{uri}'")
    if info.is_file:
        base, _, name = info.path.rpartition("/")
        return RemotePlace(uri, fs, base, name)
    return RemotePlace(uri, fs, info.path, None)

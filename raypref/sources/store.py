"""Where a source lies: a local folder, a single file, or a prefix of an object store.

All files of a source are opened here: names are relative to the store and none escapes it,
but into the folders of source.roots and the store that the source's own links are made from.
"""

from __future__ import annotations

import logging
import os
import posixpath
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import pyarrow as pa
from pyarrow import fs as pafs

from raypref.core.config import InputError
from raypref.sources.leftout import RESULTS, left_out_by, never_data, results_among

log = logging.getLogger(__name__)


class File(NamedTuple):
    """A file of a store."""

    name: str  # relative to the store
    size: int  # bytes


class SourceError(Exception):
    """An entry cannot be read; it is dropped.

    Attributes:
        reason: a short fixed word.
        message: a sentence for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def locate(path: str, roots: tuple[str, ...] = (), *, key: str = "source.path") -> Store:
    """The store of a local path or URI.

    Args:
        path: of a folder or a file.
        roots: folders of this machine that links and absolute paths may lead to.
        key: of the setting that names it, for errors.

    Raises:
        InputError: there is nothing at that path.
    """
    if "://" in path:
        return _remote(path, roots, key)
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:  # of whose home
        raise InputError(f"{key}: '{path}': {error}") from None
    if not root.exists():
        raise InputError(f"{key}: there is no folder or file '{path}'")
    if root.is_dir():
        return LocalStore(path, str(root), None, roots)
    return LocalStore(path, str(root.parent), root.name, roots)


@dataclass(frozen=True)
class LocalStore:
    """A folder of this machine, or of a file system that all nodes share."""

    path: str  # as the user gave it
    base: str
    only: str | None  # the one file that counts, where the user named a file
    roots: tuple[str, ...] = ()  # folders that links and absolute paths may lead to as well

    def files(self) -> Iterator[File]:
        """All files but those that are never data (`leftout`), sorted in each folder.

        A folder's own come before those of its folders. A name that is not UTF-8 comes escaped, and
        no file has that name. A link that leads nowhere is listed too, with no bytes; one to a
        folder is followed where it leads to one of the roots.

        Raises:
            InputError: a folder cannot be listed.
        """
        if self.only is not None:
            yield from filter(None, [self._file(self.only)])
            return
        for folder, names in self._walk(self.base, set()):
            inside = os.path.relpath(folder, self.base)
            for name in names:
                file = self._file(posixpath.normpath(posixpath.join(inside, name)))
                if file is not None:
                    yield file

    def _walk(self, top: str, followed: set[str]) -> Iterator[tuple[str, list[str]]]:
        """Folders and the sorted names of their files."""
        for folder, below, names in os.walk(top, onerror=_unlisted):
            if folder != self.base and not RESULTS.isdisjoint(names):
                below.clear()
                continue
            results = results_among(names) if folder == self.base else set()
            below[:] = sorted(name for name in below if not left_out_by(name, results))
            yield folder, sorted(name for name in names if not never_data(name))
            for path in (Path(folder, name) for name in below):
                if not path.is_symlink():
                    continue
                real = _real(str(path))
                if not real.startswith(self._roots):
                    _tell_of_link(str(path))
                elif real not in followed:  # else links could lead round in a circle
                    followed.add(real)
                    yield from self._walk(str(path), followed)

    def left_out(self) -> Iterator[tuple[str, str]]:
        """Files that are never data: for which file or folder they are left out, and the name."""
        if self.only is not None:
            return
        names = []
        for folder, _, found in os.walk(self.base):
            inside = os.path.relpath(folder, self.base)
            names += [posixpath.normpath(posixpath.join(inside, name)) for name in found]
        results = results_among(names)
        yield from ((by, name) for name in sorted(names) if (by := left_out_by(name, results)))

    def names(self, folder: str) -> list[str]:
        """Names in a folder, of files and folders. SourceError if its name escapes the root."""
        self.check(posixpath.join(folder, "any"))
        return [path.name for path in Path(self.base, folder).iterdir() if _is_text(path.name)]

    def _file(self, name: str) -> File | None:
        """A file, or a link that leads nowhere; None for a pipe or device."""
        escaped = os.fsencode(name).decode("utf-8", "backslashreplace")
        try:
            found = Path(self.base, name).stat()
        except (OSError, ValueError):
            return File(escaped, 0)
        return File(escaped, found.st_size) if stat.S_ISREG(found.st_mode) else None

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if absent. SourceError if the name escapes the root."""
        self.check(name)
        path = Path(self.base, name)
        try:
            return path.stat().st_size if path.is_file() else None
        except (OSError, ValueError):  # no file can have such a name
            return None

    def check(self, name: str) -> None:
        """SourceError if the name escapes the root, all links being followed.

        The file that the person named may be a link anywhere.
        """
        if name == self.only:
            return
        path = posixpath.join(self.base, name)
        try:
            real, base = _real(path), _real(self.base)
            # A link in the source may lead to the store it was made from; no other name may.
            if real.startswith((base, *self._roots)) or (
                real.startswith(self._stores) and _real(posixpath.dirname(path)).startswith(base)
            ):
                return
        except (OSError, ValueError):  # a name that no file can have, here or elsewhere
            return
        raise SourceError(
            "outside_root",
            f"{name} points outside the source's folder; source.roots can name the folder it "
            "leads to",
        )

    @cached_property
    def _roots(self) -> tuple[str, ...]:
        return tuple(map(_real, self.roots))

    @cached_property
    def _stores(self) -> tuple[str, ...]:
        """Where the person's own tools keep what the source's links lead to.

        The model hub's cache, git-annex and DVC put each file in a store beside or above the
        folder and a link in its place.
        """
        base = Path(os.path.realpath(self.base))
        found = [
            folder.parent / "blobs" for folder in (base, *base.parents) if _is_snapshots(folder)
        ]
        for folder in (base, *base.parents):
            found += [folder / ".git" / "annex" / "objects", folder / ".dvc" / "cache"]
        return tuple(_real(str(store)) for store in found if posixpath.isdir(store))

    def open(self, name: str) -> IO[bytes]:
        """The file, to be read and sought in."""
        self.check(name)
        return Path(self.base, name).open("rb")


def _unlisted(error: OSError) -> NoReturn:
    raise InputError(
        f"source.path: the folder {error.filename} cannot be listed: {error.strerror}; make it "
        "readable, or begin its name with a dot to leave it out"
    )


def _is_snapshots(folder: Path) -> bool:
    """Whether it is where the model hub's cache keeps revisions: models--NAME/snapshots."""
    return folder.name == "snapshots" and "--" in folder.parent.name


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


@lru_cache  # once for each
def _tell_of_link(path: str) -> None:
    log.warning(
        "%s is a link to a folder and is not followed; source.roots can name where it leads", path
    )


def _real(path: str) -> str:
    """A path with all links followed, and a slash at its end."""
    return posixpath.join(os.path.realpath(path), "")


@dataclass(frozen=True)
class RemoteStore:
    """A prefix of an object store, through pyarrow's file systems."""

    path: str
    fs: pafs.FileSystem = field(hash=False, compare=False)  # told by the path
    base: str
    only: str | None

    def files(self) -> Iterator[File]:
        """All objects but those that are never data (`leftout`), sorted."""
        found = self._all()
        results = results_among(file.name for file in found)
        yield from (file for file in found if self.only or not left_out_by(file.name, results))

    def _all(self) -> list[File]:
        if self.only is not None:
            found = [self.fs.get_file_info(f"{self.base}/{self.only}")]
        else:
            found = self.fs.get_file_info(pafs.FileSelector(self.base, recursive=True))
        start = len(self.base) + 1
        return sorted(File(info.path[start:], info.size) for info in found if info.is_file)

    def left_out(self) -> Iterator[tuple[str, str]]:
        """Objects that are never data: for which file or folder they are left out, and the name."""
        names = [] if self.only is not None else [file.name for file in self._all()]
        results = results_among(names)
        yield from ((by, name) for name in names if (by := left_out_by(name, results)))

    def names(self, folder: str) -> list[str]:
        """Names in a folder, of objects and folders. SourceError if its name escapes the root."""
        self.check(posixpath.join(folder, "any"))
        where = f"{self.base}/{folder}".rstrip("/")
        found = self.fs.get_file_info(pafs.FileSelector(where, allow_not_found=True))
        return [info.base_name for info in found]

    def size(self, name: str) -> int | None:
        """Bytes of an object, None if absent. SourceError if the name escapes the root."""
        self.check(name)
        info = self.fs.get_file_info(f"{self.base}/{name}")
        return info.size if info.is_file else None

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the objects right below a folder. SourceError if its name escapes the root."""
        self.check(posixpath.join(folder, "any"))
        where = f"{self.base}/{folder}".rstrip("/")
        found = self.fs.get_file_info(pafs.FileSelector(where, allow_not_found=True))
        start = len(self.base) + 1
        return {info.path[start:]: info.size for info in found if info.is_file}

    def check(self, name: str) -> None:
        """SourceError if the name escapes the root. An object store knows no links, only names."""
        if not posixpath.normpath(f"/base/{name}").startswith("/base/") or name.startswith("/"):
            raise SourceError("outside_root", f"{name} points outside the source's folder")

    def open(self, name: str) -> IO[bytes]:
        """The object; what is read is fetched, not more."""
        self.check(name)
        return self.fs.open_input_file(f"{self.base}/{name}")


Store = LocalStore | RemoteStore


def _remote(uri: str, roots: tuple[str, ...], key: str) -> Store:
    try:
        fs, path = pafs.FileSystem.from_uri(uri)
        info = fs.get_file_info(path.rstrip("/"))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{key}: '{uri}' cannot be reached: {error}") from None
    if isinstance(fs, pafs.LocalFileSystem):  # where there are links, which must be followed
        return locate(path, roots, key=key)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{key}: there is no folder or file '{uri}'")
    if info.is_file:
        base, _, name = info.path.rpartition("/")
        return RemoteStore(uri, fs, base, name)
    return RemoteStore(uri, fs, info.path, None)

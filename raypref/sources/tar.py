"""Tar files from strangers, read so that they can do no harm."""

from __future__ import annotations

import itertools
import posixpath
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Self, TypeVar

from raypref.sources.leftout import left_out_by
from raypref.sources.names import one_form
from raypref.sources.reading import damage, scan
from raypref.sources.store import RemoteStore, SourceError, Store

T = TypeVar("T")
READERS = 8  # shards listed side by side
LARGEST = 2**40  # bytes of a member; what lies beyond the shard is found when it is read
HEADER_BYTES = 2**16  # of a long name or an extended header
_DESCRIBES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class Member(tarfile.TarInfo):
    """A header that can do no harm: the library steps by any size, backwards too.

    Raises tarfile.ReadError for a size that no member can have.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _DESCRIBES and member.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    def _block(self, count: int) -> int:
        # Where the next member begins; an extended header may have changed the size by then.
        if not 0 <= count <= LARGEST:
            raise tarfile.ReadError(f"a member of {count} bytes")
        return int(super()._block(count))  # type: ignore[misc]


def escaped(text: str) -> str:
    """A text without what is not UTF-8: it comes escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def key_of(name: str) -> str:
    """Folder and name up to the first dot, as WebDataset defines it."""
    folder, name = posixpath.split(one_form(name))
    return posixpath.join(folder, name.split(".")[0])


def check_end(file: IO[bytes], tar: tarfile.TarFile) -> None:
    """Raise tarfile.ReadError where what follows the last member is not the archive's end.

    The library takes a broken header, and that nothing follows, for the end.
    """
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"neither a member nor the end is at byte {tar.offset}")


def side_by_side(store: Store, listed: Callable[[str], Iterator[T]]) -> Iterator[T]:
    """The entries of every shard of a store, in order.

    After the first shard some are listed at once, each in memory as a whole: an object store
    answers many readers.

    Args:
        store: where they lie.
        listed: lists the entries of a shard.
    """
    names = (file.name for file in store.files() if file.name.endswith(".tar"))
    for first in itertools.islice(names, 1):
        yield from listed(first)
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future[list[T]]] = deque()
        for name in names:
            ahead.append(pool.submit(lambda name: list(listed(name)), name))
            if len(ahead) == READERS:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def keyed(
    store: Store, shard: str, read: Callable[[IO[bytes], Iterator[tarfile.TarInfo]], T]
) -> Iterator[tuple[str, str, T]]:
    """What is read of the members of a shard that share a key and follow one another.

    Args:
        store: where it lies.
        shard: its name.
        read: is given the open shard and the members of a key that are data.

    Yields:
        An id unique in the source, the key for people, and what was read.

    Raises:
        SourceError: the shard cannot be read or is damaged.
    """
    try:
        file = scan(store, shard)
    except OSError as error:
        if isinstance(store, RemoteStore):
            raise
        raise SourceError("unreadable_archive", f"{shard} cannot be read: {error}") from None
    seen: Counter[str] = Counter()
    with file:
        try:
            # "r:" takes no compression: of a compressed shard no member could be read by itself.
            with tarfile.open(fileobj=file, mode="r:", tarinfo=Member) as tar:
                grouped = itertools.groupby(_members(tar), lambda member: key_of(member.name))
                for key, members in grouped:
                    name = escaped(key)
                    again = f"//{seen[name]}" if seen[name] else ""
                    seen[name] += 1
                    yield f"{shard}#{name}{again}", name, read(file, members)
                check_end(file, tar)
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            if isinstance(store, RemoteStore) and isinstance(error, OSError):
                raise  # the network, not the shard; tarfile's own errors are no OSErrors
            said = f"{shard} is damaged after {seen.total()} samples: {error}"
            raise SourceError("unreadable_archive", damage(store, shard, said).message) from None


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        # Else all headers of the shard stay in memory.
        tar.members = []  # type: ignore[attr-defined]
        # Links would read what lies elsewhere; sparse files are not stored as they are.
        if member.isreg() and not member.issparse() and not left_out_by(member.name):
            yield member


def contents(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    """The bytes of a member of an open shard; the archive's reader goes on where it was."""
    position = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(position)
    return data

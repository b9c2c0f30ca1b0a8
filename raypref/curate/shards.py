"""WebDataset shards: tar files whose members share a key, such as 000012.jpg and 000012.txt.

Members are read where they lie, never extracted, and their names are never used as paths.
"""

from __future__ import annotations

import itertools
import posixpath
import tarfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Self

from raypref.curate.folder import IMAGE_SUFFIXES, SIDECAR_BYTES, caption_in
from raypref.curate.place import Place, RemotePlace, SourceError, scan
from raypref.rows import Row, index_row

LARGEST = 2**40  # bytes of a member; what lies beyond the shard is found when it is read
READERS = 8  # shards listed side by side
HEADER_BYTES = 2**16  # of a long name or an extended header
APPLE_DOUBLE = "._"  # macOS puts such a member, no image whatever its name says, before each file
_DESCRIBES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


def entries(place: Place) -> Iterator[Row]:
    """The images of every shard, in order; captions come from the text of the same name.

    That is `photo.0001.txt` or `.json` for `photo.0001.jpg`, or else that of the key, `photo.txt`.

    After the first one some shards are listed at once, each in memory as a whole: an object store
    answers many readers.
    """
    names = (file.name for file in place.files() if file.name.endswith(".tar"))
    for first in itertools.islice(names, 1):
        yield from _listed(place, first)
    with ThreadPoolExecutor(READERS) as pool:
        ahead: deque[Future[list[Row]]] = deque()
        for name in names:
            ahead.append(pool.submit(lambda name: list(_listed(place, name)), name))
            if len(ahead) == READERS:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _listed(place: Place, shard: str) -> Iterator[Row]:
    try:
        file = scan(place, shard)
    except (OSError, SourceError) as error:
        if isinstance(place, RemotePlace):
            raise
        yield _damaged(shard, f"{shard} cannot be read: {error}")
        return
    with file:
        yield from _shard(place, shard, file)


def _damaged(shard: str, message: str) -> Row:
    return index_row(f"{shard}#//damaged", shard, None, problem=f"unreadable_archive: {message}")


def _shard(place: Place, shard: str, file: IO[bytes]) -> Iterator[Row]:
    seen: Counter[str] = Counter()
    sample: list[tarfile.TarInfo] = []
    try:
        # "r:" takes no compression: of a compressed shard no member could be read by itself.
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as tar:
            for member in tar:
                # Else all headers of the shard stay in memory.
                tar.members = []  # type: ignore[attr-defined]
                if member.isdir() or posixpath.basename(member.name).startswith(APPLE_DOUBLE):
                    continue
                if sample and _key(member) != _key(sample[0]):
                    yield from _images(shard, file, sample, seen)
                    sample = []
                sample.append(member)
            # The library takes a broken header, and that nothing follows, for the end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"neither a member nor the end is at byte {tar.offset}")
        yield from _images(shard, file, sample, seen)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        if isinstance(place, RemotePlace) and isinstance(error, OSError):
            raise  # the network, not the shard; tarfile's own errors are no OSErrors
        yield from _images(shard, file, sample, seen)
        yield _damaged(shard, f"{shard} is damaged after {sum(seen.values())} images: {error}")


class _Member(tarfile.TarInfo):
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


def _key(member: tarfile.TarInfo) -> str:
    """Folder and name up to the first dot, as WebDataset defines it."""
    folder, name = posixpath.split(member.name)
    return posixpath.join(folder, name.split(".")[0])


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Folder and name up to the last dot, and what follows in lower case."""
    stem, suffix = posixpath.splitext(member.name)
    return stem, suffix.lower()


def _images(
    shard: str, file: IO[bytes], sample: list[tarfile.TarInfo], seen: Counter[str]
) -> Iterator[Row]:
    texts = {_split(member): member for member in sample}
    for member in sample:
        stem, suffix = _split(member)
        if suffix not in IMAGE_SUFFIXES:
            continue
        kinds = itertools.product((stem, _key(member)), (".txt", ".json"))
        text = next((texts[kind] for kind in kinds if kind in texts), None)
        caption, problem = (None, None) if text is None else _caption(file, text)
        name = member.name.encode("utf-8", "backslashreplace").decode()
        again = f"//{seen[name]}" if seen[name] else ""  # a tar may hold a name twice
        seen[name] += 1
        # Links would read what lies elsewhere; sparse files are not stored as they are.
        plain = member.isreg() and not member.issparse()
        if not plain:
            problem = f"not_a_file: {name} in {shard} is a link, device or sparse file"
        yield index_row(
            f"{shard}#{name}{again}",
            shard,
            caption,
            size=member.size if plain else None,
            member=member.offset_data if plain else None,
            problem=problem,
        )


def _caption(file: IO[bytes], member: tarfile.TarInfo) -> tuple[str | None, str | None]:
    """What a text member says, or the problem with it."""
    if not member.isreg() or member.issparse() or member.size > SIDECAR_BYTES:
        return None, None
    place = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(place)  # where the archive's reader left it
    return caption_in(data, member.name)

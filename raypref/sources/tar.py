"""Headers of tar files from strangers, read so that they can do no harm."""

from __future__ import annotations

import posixpath
import tarfile
from typing import IO, Self

from raypref.sources.names import one_form

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

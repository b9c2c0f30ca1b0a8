"""Bodies of an Arrow stream, refused before they are read where they are or unpack too large.

A compressed buffer says first to how many bytes it unpacks, and that many are allocated. The format
is that of https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format.
"""

from __future__ import annotations

import io
import math
import struct
from typing import Any

from raypref.sources import cells
from raypref.sources.store import SourceError

UNPACKED = 2**28  # bytes that a batch may unpack to, however small it is
_DICTIONARY, _BATCH = 2, 3  # kinds of messages
_OLD = b"ARROW:experimental_compression"  # how one version said that a body is compressed
# Fields of the tables of Message.fbs.
_KIND, _HEADER, _BODY = 1, 2, 3
_DATA = 1
_BUFFERS, _COMPRESSION = 2, 3


class CheckedStream(io.RawIOBase):
    """A stream whose messages are looked at before any byte of theirs is given out.

    Args:
        opened: at the beginning of an Arrow stream.
        name: of the file, for errors.
    """

    def __init__(self, opened: io.BufferedReader, name: str) -> None:
        self.opened = opened
        self.file = name
        self.checked: float = opened.tell()  # messages before this byte are
        self.dictionaries = 0  # bytes of them all: they stay in memory

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """So many bytes, fewer at the end.

        Raises:
            SourceError: a message is or unpacks too large.
            ValueError: it is none.
        """
        at = self.opened.tell()
        end = at + size if size >= 0 else math.inf
        while self.checked < end:
            try:
                self._check(int(self.checked))
            except struct.error as error:
                raise ValueError(f"a message is malformed: {error}") from None
        self.opened.seek(at)
        return self.opened.read(size)

    def _check(self, start: int) -> None:
        """Look at the message that begins at a byte; the next one begins where `checked` is."""
        length = self._number("<i", start)
        start += 4
        if length == -1:  # files of before 2019 do not begin so
            length = self._number("<i", start)
            start += 4
        if not length:
            self.checked = math.inf  # the end of the stream
            return
        self._limit(length if length > 0 else math.inf, "is")
        self.opened.seek(start)
        message = _Table(self.opened.read(length))
        if _OLD in message.data:
            raise ValueError("it is compressed as no version does any more; write it anew")
        packed = message.value(_BODY, "<q")
        self._limit(packed if packed >= 0 else math.inf, "is")
        self.checked = start + length + packed
        kind, header = message.value(_KIND, "<B"), message.table(_HEADER)
        if kind == _DICTIONARY and header is not None:
            header = header.table(_DATA)
        if kind not in (_DICTIONARY, _BATCH) or header is None:
            return
        unpacked = packed
        if header.table(_COMPRESSION) is not None:
            unpacked = self._unpacked(header, start + length)
            if unpacked > max(UNPACKED, cells.PACKED * packed):
                self._limit(math.inf, f"unpacks from {packed} bytes to {unpacked}:")
        if kind == _DICTIONARY:
            self.dictionaries += unpacked
        self._limit(unpacked + self.dictionaries, "unpacks to")

    def _unpacked(self, header: _Table, body: int) -> int:
        """Bytes that the buffers of a batch say that they unpack to."""
        total = 0
        for offset, size in header.pairs(_BUFFERS):
            if size <= 0:
                continue
            said = self._number("<q", body + offset)
            total += size if said < 0 else said
        return total

    def _number(self, form: str, start: int) -> Any:
        if start < 0:
            raise ValueError("a message points before the file")
        self.opened.seek(start)
        return _unpack(form, self.opened.read(struct.calcsize(form)), 0)

    def _limit(self, size: float, what: str) -> None:
        if size > cells.GROUP_BYTES:
            said = f"{self.file}: a batch {what} {'' if math.isinf(size) else f'{size} bytes, '}"
            fix = "too many; write it anew in batches of 100 rows"
            raise SourceError("too_many_bytes", said + fix)


class _Table:
    """A table of a flatbuffer: fields by number, each where it says it is.

    Args:
        data: the whole buffer.
        at: where the table begins; None: the root.
    """

    def __init__(self, data: bytes, at: int | None = None) -> None:
        self.data = data
        self.at = int(_unpack("<I", data, 0)) if at is None else at

    def _field(self, number: int) -> int:
        """Where a field is, 0 where it has its default."""
        fields = self.at - _unpack("<i", self.data, self.at)
        if 4 + 2 * number >= _unpack("<H", self.data, fields):
            return 0
        offset = _unpack("<H", self.data, fields + 4 + 2 * number)
        return int(self.at + offset) if offset else 0

    def value(self, number: int, form: str) -> int:
        """A number."""
        at = self._field(number)
        return int(_unpack(form, self.data, at)) if at else 0

    def table(self, number: int) -> _Table | None:
        """A table, None where there is none."""
        at = self._field(number)
        return _Table(self.data, at + _unpack("<I", self.data, at)) if at else None

    def pairs(self, number: int) -> list[tuple[int, int]]:
        """A vector of structs of two long integers."""
        at = self._field(number)
        if not at:
            return []
        at += _unpack("<I", self.data, at)
        count = _unpack("<I", self.data, at)
        if 16 * count > len(self.data):
            raise ValueError("a message is malformed: it lists more buffers than it can")
        return [struct.unpack_from("<qq", self.data, at + 4 + 16 * i) for i in range(count)]


def _unpack(form: str, data: bytes, at: int) -> Any:
    """The number at a byte. ValueError where there is none."""
    if at < 0:
        raise ValueError("a message is malformed: it points before itself")
    return struct.unpack_from(form, data, at)[0]

"""The name of an embedded colour profile, read without the colour engine: the bytes are foreign."""

from __future__ import annotations

import struct

_TAGS = 128  # looked through at most; profiles of cameras have about 20
_NAME = 200  # bytes of a name that are read
# Profiles of sRGB's colours whose names do not say so: Facebook's small one, and its relatives.
_SRGB = ("c2", "c2ci", "urgb")


def other_than_srgb(profile: bytes) -> str:
    """The name of a profile; empty for one of sRGB, and where no name can be read."""
    name = profile_name(profile)
    return "" if "srgb" in name.lower() or name.lower() in _SRGB else name


def profile_name(profile: bytes) -> str:
    """The description in an ICC profile, version 2 or 4; empty where there is none."""
    try:
        if profile[36:40] != b"acsp":
            return ""
        (count,) = struct.unpack_from(">I", profile, 128)
        for number in range(min(count, _TAGS)):
            sign, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * number)
            if sign == b"desc":
                return _text(profile[start : start + size])
    except struct.error:  # cut
        pass
    return ""


def _text(tag: bytes) -> str:
    if tag[:4] == b"mluc":  # in many languages; the first of them
        length, offset = struct.unpack_from(">II", tag, 20)
        name = tag[offset : offset + min(length, _NAME)].decode("utf-16-be", "replace")
    else:
        (length,) = struct.unpack_from(">I", tag, 8)
        name = tag[12 : 12 + min(length, _NAME)].decode("ascii", "replace")
    return name.partition("\0")[0].strip()

"""What messages and pages show of the text of others."""

from __future__ import annotations

import re


def without_secrets(text: str) -> str:
    """A text for others to read: of addresses in it, `name:password@` becomes `***@`.

    For HTTP also `name@`, which may be a token.
    """
    return _SECRET.sub("***@", text)


def public_name(ref: str) -> str:
    """A hub id as it is; of a local path the last name, which is all that is anyone's business."""
    return ref.rstrip("/").rpartition("/")[2] if _LOCAL.match(ref) else ref


_SECRET = re.compile(r"(?<=://)[^/@\s\"':]*:[^/@\s\"']*@|(?<=http://|ttps://)[^/@\s\"']+@")
_LOCAL = re.compile(r"[/~.]|\w+://")


def first_line(error: BaseException, *, limit: int = 160) -> str:
    """What a library's exception says, for one line: `OSError: no such file`, `TimeoutError`."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line[:limit] for line in lines[:1])])

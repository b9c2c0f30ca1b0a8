"""What messages and pages show of the text of others."""

from __future__ import annotations

import re


def without_secrets(text: str) -> str:
    """A text for others to read: of addresses in it, `name:password@` becomes `***@`."""
    return re.sub(r"(?<=://)[^/@\s\"':]*:[^/@\s\"']*@", "***@", text)


def first_line(error: BaseException, *, limit: int = 160) -> str:
    """What a library's exception says, for one line: `OSError: no such file`, `TimeoutError`."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *(line[:limit] for line in lines[:1])])

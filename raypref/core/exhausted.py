"""A disk or a device's memory is full: the error, and the one line that is told."""

from __future__ import annotations

import errno

MAKE_ROOM = "make room on that disk, then give the same command again"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(RuntimeError):
    """A disk or a device's memory is full; one line that names the path or setting and the fix.

    Jobs print it without a traceback and fail. Finished work stays; the same command resumes.
    """


def full_disk(error: BaseException) -> bool:
    """Whether the file system had no space left, or the user's quota is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


def exhausted(error: Exception) -> str:
    """The line to tell people when a disk or memory is full; empty for any other error."""
    if full_disk(error):
        return f"{error}; {MAKE_ROOM}"
    return str(error) if isinstance(error, NoRoomError) else ""

<<<<<<< HEAD:raypref/memory.py
"""Out of memory: how it is recognised, and what is said when half the batch was too much."""

from __future__ import annotations

from raypref.exhausted import NoRoomError
=======
"""Out of memory or disk: which errors mean it, and the one line that names the fix."""

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


def no_room(error: Exception) -> str:
    """The line for people when disk or memory is full; empty for any other error."""
    if full_disk(error):
        return f"{error}; {MAKE_ROOM}"
    return str(error) if isinstance(error, NoRoomError) else ""
>>>>>>> d8dc0145a3817eee6316b83b78298f3241c54709:raypref/room.py


def out_of_memory(error: BaseException) -> bool:
    """Whether torch got no memory, on a GPU or the CPU."""
    import torch  # only here: tasks without models start quicker without it

    no_memory = "DefaultCPUAllocator"  # the CPU's has no class of its own
    return isinstance(error, torch.OutOfMemoryError) or no_memory in str(error)


def too_much(name: str, usual: int, size: int) -> NoRoomError:
    """A transform ran out of memory for good.

    Args:
        name: of the transform.
        usual: its `resources.batch`.
        size: the batch it was last tried with.
    """
    tried = f"resources.batch={usual}" + (f", and again with {size}" if size < usual else "")
    if size > 1:
        fix = f"set resources.batch of its section to {size // 2} (clusters/README.md)"
    else:
        fix = "one row is too much: it needs a device with more memory, or fewer models beside it"
    return NoRoomError(f"transform {name}: memory ran out with {tried}; {fix}")

"""No room: what is tried, and told in one line, when a disk or a device's memory is full."""

from __future__ import annotations

import errno

from raypref.rows import Row, Stage, is_rejected

MAKE_ROOM = "make room on that disk, then give the same command again"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(RuntimeError):
    """A disk or a device's memory is full; one line that names the path or setting and the fix.

    Jobs print it without a traceback and fail; what is finished stays, the same command goes on.
    """


def full_disk(error: BaseException) -> bool:
    """Whether the file system had no space left, or the user's quota is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


def no_room(error: Exception) -> str:
    """The line to tell people when this is about room; empty when it is about something else."""
    if full_disk(error):
        return f"{error}; {MAKE_ROOM}"
    return str(error) if isinstance(error, NoRoomError) else ""


def out_of_memory(error: BaseException) -> bool:
    """Whether torch got no memory, on a GPU or the CPU."""
    import torch  # only here: tasks without models start quicker without it

    no_memory = "DefaultCPUAllocator"  # the CPU's has no class of its own
    return isinstance(error, torch.OutOfMemoryError) or no_memory in str(error)


def in_batches(stage: Stage, rows: list[Row]) -> str:
    """Send rows through a stage, `resources.batch` at a time.

    When the stage runs out of memory, the rows not done are done with half the batch, once. Models
    pad to the batch they know, so the stage has other `resources` for that time. Another batch
    changes the order of a model's sums: those rows' results then move by rounding only.

    Args:
        stage: set up.
        rows: live ones; filled in place.

    Returns:
        A line to tell people; empty when memory sufficed.

    Raises:
        NoRoomError: half the batch was too much as well, or the batch is 1.
    """
    usual = stage.resources
    try:
        while rows:
            size = stage.resources.batch
            try:
                stage(rows[:size])
                rows = rows[size:]
                continue
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if size == 1 or size < usual.batch:
                    raise NoRoomError(_advice(stage.name, usual.batch, size)) from error
            # Only here is the exception gone, and with it the tensors that its frames held.
            stage.resources = usual.model_copy(update={"batch": size // 2})
            rows = [row for row in rows if not is_rejected(row)]  # by the attempt
        if stage.resources is usual:
            return ""
        batch = stage.resources.batch
        return f"{stage.name} ran out of memory with resources.batch={usual.batch}; used {batch}\n"
    finally:
        stage.resources = usual


def _advice(name: str, usual: int, size: int) -> str:
    tried = f"resources.batch={usual}" + (f", and again with {size}" if size < usual else "")
    if size > 1:
        fix = f"set resources.batch of this stage's section to {size // 2} (clusters/README.md)"
    else:
        fix = "one row is too much: it needs a device with more memory, or fewer models beside it"
    return f"stage {name}: memory ran out with {tried}; {fix}"

"""Out of memory: how it is recognised, and what is said when half the batch was too much."""

from __future__ import annotations

from raypref.core.exhausted import NoRoomError


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

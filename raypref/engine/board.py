"""Where the driver leaves blocks for a pool of workers. A process of its own: imports no model."""

from __future__ import annotations

import asyncio

import ray


@ray.remote(num_cpus=0)
class Board:
    """The blocks of one pass after another, numbered, and what to do with them."""

    def __init__(self) -> None:
        self.blocks: list[bytes | None] = []
        self.work = (0, 0, b"", b"")
        self.changed = asyncio.Condition()

    async def post(self, stages: bytes, worker: bytes, blocks: list[bytes]) -> int:
        """Begin a pass; the blocks of those before are done. Returns the number of its first."""
        async with self.changed:
            first = len(self.blocks)
            self.work = (first, first + len(blocks), stages, worker)
            self.blocks = [*([b""] * first), *blocks]  # numbers stay
            self.changed.notify_all()
            return first

    async def end(self) -> None:
        """There will be no more blocks."""
        async with self.changed:
            self.blocks.append(None)
            self.changed.notify_all()

    async def block(self, number: int) -> bytes | None:
        """A block, as soon as it is there; None at the end."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.blocks) > number)
            return self.blocks[number]

    async def current(self) -> tuple[int, int, bytes, bytes]:
        """The pass: numbers of its first block and of the one after it; stages; worker."""
        return self.work

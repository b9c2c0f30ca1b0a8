"""Where the driver leaves blocks for a pool of workers. A process of its own: imports no model."""

from __future__ import annotations

import asyncio

import ray


@ray.remote(num_cpus=0)
class Board:
    """Where the driver leaves blocks, and what to do with them."""

    def __init__(self) -> None:
        self.blocks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.work = (-1, b"", b"")

    async def post(self, number: int, stages: bytes, worker: bytes) -> None:
        """What the blocks of a pass go through."""
        self.work = (number, stages, worker)

    async def feed(self, blocks: list[bytes | None]) -> None:
        """Add blocks; None ends the feed."""
        for block in blocks:
            self.blocks.put_nowait(block)

    async def next(self) -> bytes | None:
        """The next block, as soon as there is one."""
        return await self.blocks.get()

    async def current(self) -> tuple[int, bytes, bytes]:
        """Number of the pass, its stages, its worker."""
        return self.work

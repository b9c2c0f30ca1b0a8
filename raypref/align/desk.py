"""Where the driver leaves trainings, and the workers what they have to tell. Imports no model."""

from __future__ import annotations

import asyncio

import ray


@ray.remote(num_cpus=0)
class Desk:
    """Jobs on their way to the workers, news on their way to the driver.

    Both are pickled by those who know what they are: this process needs none of their libraries.
    """

    def __init__(self) -> None:
        self.jobs: list[bytes] = []
        self.done = 0
        self.starts = 0  # of groups: more than one after a failure
        self.closed = False
        self.told: list[tuple[str, bytes]] = []
        self.changed = asyncio.Condition()

    async def give(self, job: bytes) -> None:
        """Add a job."""
        async with self.changed:
            self.jobs.append(job)
            self.changed.notify_all()

    async def close(self) -> None:
        """No more jobs: the workers end."""
        async with self.changed:
            self.closed = True
            self.changed.notify_all()

    async def begin(self, rank: int) -> int:
        """A worker of a new group asks which job is to be done: all get the same answer."""
        self.starts += rank == 0
        return self.done

    async def starts_of_groups(self) -> int:
        """How many groups have begun: more than one after a failure."""
        return self.starts

    async def job(self, number: int) -> bytes | None:
        """The job of a number, as soon as there is one; None when there will be none."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.closed or len(self.jobs) > number)
            return None if self.closed else self.jobs[number]

    async def tell(self, kind: str, value: bytes) -> None:
        """Add news for the driver; nobody tries a refused job again."""
        async with self.changed:
            if kind == "refused":
                self.closed = True
            if kind == "done":
                self.done += 1
            self.told.append((kind, value))
            self.changed.notify_all()

    async def news(self) -> list[tuple[str, bytes]]:
        """All that was told since the last call, as soon as there is something."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.told)
            news, self.told = self.told, []
            return news

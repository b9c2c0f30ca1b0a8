"""Batches prepared by tasks on any node, for a model that one process cannot feed.

A worker keeps a bounded number of batches under way and takes what is ready first. What a task
returns goes through the object store once, from its node to the worker's; a part of a ledger is
still filled by one worker, so kills cost and resume what they do without. Ray runs a task again
whose node or process is lost, three times at most; tasks of a worker that is lost are given up.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, NamedTuple

import ray
from ray import cloudpickle

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.engine.batches import PooledTransform, Preparation

FEWEST = 2  # batches under way per block
ASK_SECONDS = 10.0


class Readers:
    """Sends batches of one transform to tasks, for all blocks of a worker.

    Args:
        transform: whose batches they are.
        need: what each worker holds, and how many there are.
    """

    def __init__(self, transform: PooledTransform, need: Resources) -> None:
        self._preparation = ray.put(cloudpickle.dumps(transform.preparation))
        self._columns = transform.reads
        self._need = need
        self._lock = threading.Lock()
        self._under_way: Counter[int] = Counter()  # batches by block
        self._share, self._asked = 0.0, -math.inf

    def of_block(self, block: int) -> BlockReaders:
        """Those of a block; the numbers of older ones are smaller."""
        return BlockReaders(self, block)

    def more(self, block: int) -> bool:
        """Whether a block may send another batch: see `BlockReaders`."""
        with self._lock:
            most = 1.5 * self._cores() + FEWEST
            mine, oldest = self._under_way[block], min(self._under_way, default=block)
            return mine < FEWEST or (mine if block == oldest else self._under_way.total()) < most

    def submit(self, block: int, rows: list[Row]) -> Future[Any]:
        """Have a batch of a block prepared from the columns that the transform reads."""
        with self._lock:
            self._under_way[block] += 1
        read: dict[int, Row] = {}  # by identity: a batch may end in copies of its last row
        for row in rows:
            read.setdefault(id(row), {name: row[name] for name in self._columns})
        own = [read[id(row)] for row in rows]
        future: Future[Any] = _prepare.remote(self._preparation, own).future()
        return future

    def taken(self, block: int, count: int) -> None:
        """So many batches of a block are in the store no more."""
        with self._lock:
            self._under_way[block] -= count
            if not self._under_way[block]:
                del self._under_way[block]

    def _cores(self) -> float:
        """Cores per worker that no worker holds; nodes come and go, so it is asked at times."""
        if time.monotonic() - self._asked > ASK_SECONDS:
            held = self._need.workers * self._need.num_cpus
            cores = ray.cluster_resources().get("CPU", 0.0) - held
            self._share, self._asked = cores / max(1, self._need.workers), time.monotonic()
        return self._share


class BlockReaders(NamedTuple):
    """The readers of a worker as one of its blocks sees them.

    The oldest block may have three batches under way per two cores that read; the others have what
    it leaves. So blocks end one after another, and while one is
    written the next is read. A block that has few under way may always send another.
    """

    readers: Readers
    block: int

    def more(self) -> bool:
        """Whether it may send another batch."""
        return self.readers.more(self.block)

    def submit(self, rows: list[Row]) -> Future[Any]:
        """Have a batch prepared."""
        return self.readers.submit(self.block, rows)

    def taken(self, count: int) -> None:
        """So many are computed, or not wanted any more."""
        self.readers.taken(self.block, count)


@ray.remote(num_cpus=1)
def _prepare(pickled: bytes, rows: list[Row]) -> Any:
    return _set_up(pickled)(rows)


@lru_cache(maxsize=1)  # a process serves one pass after another
def _set_up(pickled: bytes) -> Preparation:
    preparation: Preparation = cloudpickle.loads(pickled)
    preparation.setup()
    return preparation

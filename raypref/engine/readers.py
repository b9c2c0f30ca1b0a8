"""Batches prepared by tasks on any node, for a model that one process cannot feed.

A worker keeps a bounded number of batches under way and takes what is ready first. What a task
returns goes through the object store once, from its node to the worker's; a part of a ledger is
still filled by one worker, so kills cost and resume what they do without. Ray runs a task again
whose node or process is lost, three times at most; tasks of a worker that is lost are given up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

import ray
from ray import cloudpickle

from raypref.core.config import Resources
from raypref.core.rows import Row
from raypref.engine.batches import PooledTransform, Preparation


class Readers:
    """Sends batches of one transform to tasks.

    Args:
        transform: whose batches they are.
        need: what each worker holds, and how many there are.
    """

    def __init__(self, transform: PooledTransform, need: Resources) -> None:
        self._preparation = ray.put(cloudpickle.dumps(transform.preparation))
        self._columns = transform.reads
        self._need = need

    @property
    def ahead(self) -> int:
        """Batches under way per block: one per core of the cluster that is this worker's share.

        Nodes come and go, so it is asked per block. A worker has two blocks or more in hand: while
        the tasks of one run, those of the next wait for cores.
        """
        cores = ray.cluster_resources().get("CPU", 0.0) - self._need.workers * self._need.num_cpus
        return max(2, math.ceil(cores / max(1, self._need.workers)) + 1)

    def submit(self, rows: Sequence[Row]) -> Future[Any]:
        """Have a batch prepared, of the columns that the transform reads."""
        read: dict[int, Row] = {}  # by identity: a batch may end in copies of its last row
        for row in rows:
            read.setdefault(id(row), {name: row[name] for name in self._columns})
        own = [read[id(row)] for row in rows]
        future: Future[Any] = _prepare.remote(self._preparation, own).future()
        return future


@ray.remote(num_cpus=1)
def _prepare(pickled: bytes, rows: list[Row]) -> Any:
    return _set_up(pickled)(rows)


@lru_cache(maxsize=1)  # a process serves one pass after another
def _set_up(pickled: bytes) -> Preparation:
    preparation: Preparation = cloudpickle.loads(pickled)
    preparation.setup()
    return preparation

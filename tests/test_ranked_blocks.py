"""Blocks that are done until it is enough: the first ones first, however many workers there are."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray

from raypref.config import Resources
from raypref.ledger import Ledger
from raypref.rows import Row
from raypref.streaming import StreamConfig, start_ray, stream

BLOCK = 2
NUMBERS = pa.table({"id": [f"{n:03d}" for n in range(12 * BLOCK)], "n": range(12 * BLOCK)})


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, num_gpus=1, log_to_driver=False)  # Ray takes our word for the GPU
    start_ray()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    yield
    ray.shutdown()


class Together:
    """Two workers on a share of a GPU, which begin together however they were started."""

    name = "together"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("seen", pa.int64())])
    resources = Resources(workers=2, num_cpus=0.25, num_gpus=0.25)

    def __init__(self, there: Path) -> None:
        self.there = there

    def setup(self) -> None:
        (self.there / str(os.getpid())).touch()
        while len(list(self.there.iterdir())) < self.resources.workers:
            time.sleep(0.05)

    def __call__(self, rows: list[Row]) -> None:
        time.sleep(0.5)
        for row in rows:
            row["seen"] = row["n"]


def test_no_worker_queues_the_best_blocks_while_another_makes_later_ones(tmp_path):
    ledger, numbers = Ledger(str(tmp_path / "ledger"), {}), []
    there = tmp_path / "there"
    there.mkdir()

    def enough(part: str) -> bool:
        numbers.append(ledger.part(part)["seen"].to_pylist())
        return len(numbers) >= 2

    stream(
        NUMBERS,
        stages=[Together(there)],
        ledger=ledger,
        keep=["seen"],
        config=StreamConfig(block_rows=BLOCK),
        enough=enough,
    )
    # Each worker works on one block and reads another: of the first four, two are done first.
    assert all(n < 4 * BLOCK for block in numbers[:2] for n in block)

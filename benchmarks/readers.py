"""A GPU that scores 800 photographs per second, fed by 24 cores of other nodes; the driver's time.

The real workers, tasks, object stores and ledgers on logical nodes of one machine. Reading and
scoring sleep; an input of PickScore's size (150 kB) per row travels between the nodes' stores.
Then what the driver does per result, with blocks of one row: the part that no node shortens.

    python benchmarks/readers.py [SECONDS] [RESULTS]
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from sleeping import SleepingModel, SleepingReading, SleepingScore

from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.engine.cluster import start_ray
from raypref.engine.kept import release
from raypref.engine.stream import StreamConfig, stream

NODES, CORES = 3, 8  # that read
READ = 0.022  # seconds per photograph: fetch, decode, resize
SCORES = 800  # per second of the device
BATCH = 64
PART = 16384  # rows per shard: one result of the driver
STORE = 1000 * 2**20  # bytes of a node's object store: 76 batches are 0.7 GB


@contextmanager
def cluster() -> Iterator[None]:
    """A head that does no work, a node with a GPU and one core, nodes that read."""
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        made.add_node(wait=False, num_cpus=1, num_gpus=1, object_store_memory=STORE)
        for _ in range(NODES):
            made.add_node(wait=False, num_cpus=CORES, object_store_memory=STORE)
        made.wait_for_nodes(timeout=600)
        ray.init(made.address, logging_level=logging.ERROR, log_to_driver=False)
        start_ray()
        yield
    finally:
        release()
        ray.shutdown()
        made.shutdown()


def numbers(count: int) -> pa.Table:
    """Rows to score."""
    return pa.table({"id": [f"{n:08d}" for n in range(count)], "n": list(range(count))})


def spans(log: Path) -> list[tuple[float, float]]:
    """When the device computed, in order."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return sorted((float(start), float(end)) for _, start, end, _ in lines)


def share(found: list[tuple[float, float]]) -> float:
    """Of the time from the first batch to the last, how much the device computed."""
    return sum(end - start for start, end in found) / (found[-1][1] - found[0][0])


def fed(seconds: float, folder: Path) -> None:
    """Print the device's share and how much the stores held."""
    reading = SleepingReading(READ, NODES * CORES, folder)
    need = Resources(workers=1, num_gpus=1, num_cpus=1, batch=BATCH)
    model = SleepingScore(reading, 1 / SCORES, need)
    rows = numbers(round(seconds * SCORES / PART + 0.5) * PART)
    ledger = Ledger(str(folder / "ledger"), {})
    config = StreamConfig(block_rows=PART, progress_seconds=3600)
    began = time.process_time()
    done = stream(rows, stages=[model], ledger=ledger, keep=["n", "double"], config=config)
    driver = time.process_time() - began
    table = ledger.table(["n", "double"])
    assert table["double"].to_pylist() == [2 * n for n in range(rows.num_rows)]
    found = spans(folder / "log")
    gaps = [(start - end, end - found[0][0]) for (_, end), (start, _) in itertools.pairwise(found)]
    told = (f"{gap:.2f} at {moment:.0f}" for gap, moment in sorted(gaps)[-5:])
    print("longest gaps of the device, s:", ", ".join(told), flush=True)
    print(
        f"{rows.num_rows} rows, {NODES * CORES} cores that read at {READ * 1e3:g} ms, a device at "
        f"{SCORES}/s: device {share(found):.3f} of the time, "
        f"{rows.num_rows / (found[-1][1] - found[0][0]):.0f} rows/s; busy as reported "
        f"{done.busy:.1f} s; driver {driver:.1f} core seconds; load {psutil.getloadavg()[0]:.0f}",
        flush=True,
    )


def results(count: int, folder: Path) -> None:
    """Print the driver's core time per result, with started workers."""
    for name, blocks in (("warm-up", 50), ("measured", count)):
        need = Resources(workers=1, num_gpus=1, num_cpus=1)
        model = SleepingModel(0, 0, folder / "log", need)
        ledger = Ledger(str(folder / name), {})
        config = StreamConfig(block_rows=1, progress_seconds=3600)
        began, wall = time.process_time(), time.monotonic()
        stream(numbers(blocks), stages=[model], ledger=ledger, keep=["n"], config=config)
        each = (time.process_time() - began) / blocks
        rate = blocks / (time.monotonic() - wall)
    print(
        f"driver: {each * 1e3:.2f} core ms per result, at {rate:.0f} results/s: one core takes "
        f"{1 / each:.0f} results/s, or {4096 / each:,.0f} photographs/s in shards of 4,096, "
        f"{16384 / each:,.0f} in shards of 16,384"
    )


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float, nargs="?", default=60, help="of the device")
    parser.add_argument("results", type=int, nargs="?", default=2000)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    # Workers would run behind whatever else runs on this machine.
    os.environ |= {"RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory() as folder, cluster():
        fed(given.seconds, Path(folder))
        (Path(folder) / "driver").mkdir()
        results(given.results, Path(folder) / "driver")


if __name__ == "__main__":
    main()

"""How much of the time a device computes while rows are prepared for it, against a plain loop.

The real worker, Ray Data and ledgers on a model that only sleeps: the seconds that real rows take
on the CPU (`prepare`) and on an H100 (`compute`). Until 0.1.0 the CPU's part held the device too:
0.44 and 0.74 of the time were the device's, and the worker reported 1.04 and 1.

    python benchmarks/streaming_overlap.py [SECONDS]
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import ray
from sleeping import SleepingModel

from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.engine.cluster import start_ray
from raypref.engine.kept import release
from raypref.engine.stream import StreamConfig, stream

CASES = {"PickScore of an image": (0.0113, 0.0083), "a pair": (0.106, 0.300)}  # seconds per row
WORKER = Resources(num_gpus=1, num_cpus=3, batch=8)  # has four blocks in hand


def device_share(log: Path) -> tuple[float, float]:
    """Seconds that the device computed, and their share from the first batch to the last."""
    lines = [line.split() for line in log.read_text().splitlines()]
    spans = [(float(start), float(end)) for _, start, end, _ in lines]
    computed = sum(end - start for start, end in spans)
    return computed, computed / (max(end for _, end in spans) - min(start for start, _ in spans))


def streamed(rows: pa.Table, folder: Path, prepare: float, compute: float) -> tuple[Ledger, float]:
    """Stream the rows through the model; the filled ledger, and the busy seconds per worker."""
    ledger = Ledger(str(folder / "ledger"), {})
    model = SleepingModel(prepare, compute, folder / "log", WORKER)
    config = StreamConfig(progress_seconds=3600)
    done = stream(rows, stages=[model], ledger=ledger, keep=["n", "double"], config=config)
    return ledger, done.busy


def plain(rows: pa.Table, prepare: float, compute: float, folder: Path) -> float:
    """The device's share in a plain loop over two blocks."""
    model = SleepingModel(prepare, compute, folder / "plain", WORKER)
    some = rows.slice(0, 128).to_pylist()
    for start in range(0, len(some), WORKER.batch):
        batch = some[start : start + WORKER.batch]
        model.finish(batch, model.compute(model.prepare(batch)))
    return device_share(folder / "plain")[1]


def main() -> None:
    """Print the shares of both cases."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    logging.disable(logging.INFO)
    ray.init(num_cpus=4, num_gpus=1, logging_level=logging.ERROR, log_to_driver=False)
    start_ray()
    for name, (prepare, compute) in CASES.items():
        count = round(seconds / compute / 64) * 64
        numbers = list(range(count))
        rows = pa.table({"id": [f"{n:06d}" for n in numbers], "n": numbers})
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            ledger, busy = streamed(rows, folder, prepare, compute)
            computed, share = device_share(folder / "log")
            alone = plain(rows, prepare, compute, folder)
            table = ledger.table(["n", "double"])
            assert table["double"].to_pylist() == [2 * n for n in table["n"].to_pylist()]
            assert table["n"].to_pylist() == numbers, "not the rows of a plain loop"
            assert len(ledger.parts()) == count // 64
        print(
            f"{name}: {prepare * 1e3:g} + {compute * 1e3:g} ms, {count} rows; device {share:.3f} of"
            f" the time, plain loop {alone:.3f}; busy {busy:.2f} s, device log {computed:.2f} s"
            f" ({busy / computed:.3f})"
        )
        assert share >= 0.95
        assert abs(busy / computed - 1) < 0.02
    release()
    ray.shutdown()


if __name__ == "__main__":
    main()

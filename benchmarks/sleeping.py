"""Transforms that sleep in place of work; apart, so that their workers import little."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa

from raypref.core.config import Resources
from raypref.core.rows import Row


class SleepingReader:
    """Transform: takes its time, as reading does.

    Args:
        seconds: per row.
    """

    name = "read"
    reads: tuple[str, ...] = ()
    writes = pa.schema([])
    resources = Resources(workers=0, batch=8)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Sleep."""
        time.sleep(self.seconds * len(rows))


class SleepingModel:
    """Transform: takes its time to prepare and to compute, and logs the latter.

    Workers begin together: the few cores of this machine start them one after another, machines of
    their own would not.

    Args:
        prepare: seconds per row.
        compute: seconds per row of a batch, copies too.
        log: gets a line per batch: process, start and end in seconds, rows.
        resources: batch, and what a worker holds.
    """

    name = "model"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("double", pa.int64())])

    def __init__(self, prepare: float, compute: float, log: Path, resources: Resources) -> None:
        self.seconds = (prepare, compute)
        self.log = log
        self.resources = resources

    def setup(self) -> None:
        """Nothing to load; wait for the others."""
        (self.log.parent / f"worker-{os.getpid()}").touch()
        while len(list(self.log.parent.glob("worker-*"))) < self.resources.workers:
            time.sleep(0.1)

    def prepare(self, rows: list[Row]) -> list[Row]:
        """Sleep."""
        time.sleep(self.seconds[0] * len(rows))
        return rows

    def compute(self, batch: list[Row]) -> list[Row]:
        """Sleep, and log when."""
        began = time.monotonic()
        time.sleep(self.seconds[1] * len(batch))
        with self.log.open("a") as gpu:
            gpu.write(f"{os.getpid()} {began} {time.monotonic()} {len(batch)}\n")
        return batch

    def finish(self, rows: list[Row], out: list[Row]) -> None:
        """Double the number."""
        for row, computed in zip(rows, out, strict=False):
            row["double"] = 2 * computed["n"]


class SleepingInpainter(SleepingModel):
    """Transform that sleeps as long as making one pair from a photograph takes."""

    name = "paint"
    reads: tuple[str, ...] = ()
    writes = pa.schema(
        [
            *((column, pa.binary()) for column in ("chosen", "rejected", "mask")),
            ("pickscore_rejected", pa.float32()),
            ("colorfulness_rejected", pa.float64()),
        ]
    )

    def finish(self, rows: list[Row], out: list[Row]) -> None:
        """Fill the columns with next to nothing."""
        for row in rows:
            passes = row["caption"] == "passes"
            row |= {"chosen": b"", "rejected": b"", "mask": b"", "colorfulness_rejected": 0.0}
            row["pickscore_rejected"] = row["pickscore"] - (1.0 if passes else 0.0)

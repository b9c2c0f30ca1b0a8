"""Transforms that sleep in place of work; apart, so that their workers import little."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raypref.core.config import Resources
from raypref.core.rows import Row

SIDE = 224  # pixels of PickScore's input: 150 kB per row


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


class SleepingReading:
    """What a task does for `SleepingScore`: sleeps as long as reading takes.

    Args:
        seconds: per row.
        processes: that begin together.
        folder: where each leaves a mark.
    """

    def __init__(self, seconds: float, processes: int, folder: Path) -> None:
        self.seconds = seconds
        self.processes = processes
        self.folder = folder

    def setup(self) -> None:
        """Wait for the others."""
        (self.folder / f"reader-{os.getpid()}").touch()
        while len(list(self.folder.glob("reader-*"))) < self.processes:
            time.sleep(0.1)

    def __call__(self, rows: list[Row]) -> np.ndarray:
        """Sleep; an input of PickScore's size per row."""
        time.sleep(self.seconds * len(rows))
        return np.zeros((len(rows), 3, SIDE, SIDE), np.uint8)


class SleepingScore(SleepingModel):
    """Transform whose batches tasks read, and whose device computes."""

    def __init__(self, reading: SleepingReading, compute: float, resources: Resources) -> None:
        super().__init__(reading.seconds, compute, reading.folder / "log", resources)
        self.preparation = reading

    def compute(self, batch: Any) -> Any:
        """Sleep, and log when."""
        assert batch[-1, -1, -1, -1] == 0, "all of it has come"
        return super().compute(batch)

    def finish(self, rows: list[Row], out: Any) -> None:
        """Double the number."""
        for row in rows:
            row["double"] = 2 * row["n"]

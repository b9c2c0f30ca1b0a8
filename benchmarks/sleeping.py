"""A stage that sleeps in place of a model; apart, so that its workers import little."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa

from raypref.config import Resources
from raypref.rows import Row


class Sleep:
    """Stage: takes its time; one that needs a GPU notes when.

    Workers begin together: the few cores of this machine start them one after another, machines of
    their own would not.
    """

    reads: tuple[str, ...] = ()

    def __init__(self, name: str, seconds: float, log: Path, resources: Resources) -> None:
        self.name = name
        self.seconds = seconds
        self.log = log
        self.resources = resources
        images = [(column, pa.binary()) for column in ("chosen", "rejected", "mask")]
        numbers = [("pickscore_rejected", pa.float32()), ("colorfulness_rejected", pa.float64())]
        self.writes = pa.schema([*images, *numbers])

    def setup(self) -> None:
        """Nothing to load; wait for the others."""
        if self.resources.workers:
            (self.log.parent / f"worker-{os.getpid()}").touch()
            while len(list(self.log.parent.glob("worker-*"))) < self.resources.workers:
                time.sleep(0.1)

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns with next to nothing."""
        if not self.resources.num_gpus:
            time.sleep(self.seconds * len(rows))
            return
        began = time.monotonic()
        time.sleep(self.seconds * len(rows))
        with self.log.open("a") as gpu:
            gpu.write(f"{os.getpid()} {began} {time.monotonic()} {len(rows)}\n")
        for row in rows:
            passes = row["caption"] == "passes"
            row |= {"chosen": b"", "rejected": b"", "mask": b"", "colorfulness_rejected": 0.0}
            row["pickscore_rejected"] = row["pickscore"] - (1.0 if passes else 0.0)

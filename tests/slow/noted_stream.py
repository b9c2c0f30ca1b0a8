"""A stream whose transforms note every row they take: what the kill test runs and counts.

python noted_stream.py FOLDER CORES_A_WORKER GPUS_A_WORKER
"""

import logging
import os
import sys
import time
import uuid
from pathlib import Path

import pyarrow as pa

from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.core.rows import Row
from raypref.engine.cluster import start_ray
from raypref.engine.kept import release
from raypref.engine.stream import StreamConfig, stream

ROWS = 96
BLOCK = 4
WORKERS = 2
SECONDS = 0.1  # per row of the model


class Quick:
    """Notes the rows it takes, and runs far ahead where it is let."""

    name = "quick"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("quick", pa.int64())])
    resources = Resources(workers=0, batch=1)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, rows: list[Row]) -> None:
        for row in rows:
            note(self.folder, self.name, row["id"])
            row["quick"] = row["n"]


class Slow:
    """Notes the rows it computes; slow to start and to work, as a model is."""

    name = "slow"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("slow", pa.int64())])

    def __init__(self, folder: Path, resources: Resources) -> None:
        self.folder = folder
        self.resources = resources

    def setup(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        time.sleep(20 * SECONDS)

    def prepare(self, rows: list[Row]) -> list[Row]:
        return rows

    def compute(self, batch: list[Row]) -> list[int]:
        for row in batch:
            note(self.folder, self.name, row["id"])
            time.sleep(SECONDS)
        return [row["n"] for row in batch]

    def finish(self, rows: list[Row], out: list[int]) -> None:
        for row, n in zip(rows, out, strict=False):
            row["slow"] = n


def note(folder: Path, name: str, id_: str) -> None:
    """Leave a mark that outlives the worker."""
    (folder / f"{name}-{id_}-{os.getpid()}-{uuid.uuid4().hex}").touch()


def main() -> None:
    folder, cores, gpus = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    logging.basicConfig(level=logging.INFO)
    model = Resources(workers=WORKERS, batch=1, num_cpus=cores, num_gpus=gpus)
    start_ray()
    notes = folder / "notes"
    stream(
        pa.table({"id": [f"{n:03d}" for n in range(ROWS)], "n": list(range(ROWS))}),
        stages=[
            Quick(notes),
            Slow(notes, model),
        ],
        ledger=Ledger(str(folder / "ledger"), {}),
        keep=["quick", "slow"],
        config=StreamConfig(block_rows=BLOCK, progress_seconds=0),
    )


if __name__ == "__main__":
    try:
        main()
    finally:
        release()  # as every job does

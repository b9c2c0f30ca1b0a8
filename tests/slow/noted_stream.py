"""A stream whose stages note every row they take: what the kill test runs and counts.

python noted_stream.py FOLDER CORES_A_WORKER GPUS_A_WORKER
"""

import logging
import os
import sys
import time
import uuid
from pathlib import Path

import pyarrow as pa

from raypref.cluster import start_ray
from raypref.config import Resources
from raypref.kept import release
from raypref.ledger import Ledger
from raypref.rows import Row
from raypref.streaming import StreamConfig, stream

ROWS = 96
BLOCK = 4
WORKERS = 2


class Note:
    """Notes the rows it takes. The first one is quick; the second is slow, to start and to work,
    as a stage with a model is: what lets a first stage run far ahead."""

    reads: tuple[str, ...] = ("n",)

    def __init__(self, folder: Path, name: str, *, seconds: float, resources: Resources) -> None:
        self.resources = resources
        self.folder = folder
        self.name = name
        self.seconds = seconds
        self.writes = pa.schema([(name, pa.int64())])

    def setup(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        time.sleep(20 * self.seconds)

    def __call__(self, rows: list[Row]) -> None:
        for row in rows:
            name = f"{self.name}-{row['id']}-{os.getpid()}-{uuid.uuid4().hex}"
            (self.folder / name).touch()
            time.sleep(self.seconds)
            row[self.name] = row["n"]


def main() -> None:
    folder, cores, gpus = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    logging.basicConfig(level=logging.INFO)
    model = Resources(workers=WORKERS, batch=1, num_cpus=cores, num_gpus=gpus)
    start_ray()
    notes = folder / "notes"
    stream(
        pa.table({"id": [f"{n:03d}" for n in range(ROWS)], "n": list(range(ROWS))}),
        stages=[
            Note(notes, "quick", seconds=0, resources=Resources(workers=0, batch=1)),
            Note(notes, "slow", seconds=0.1, resources=model),
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

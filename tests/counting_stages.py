"""Stages that count, fail, wait or run out of memory, and leave a mark of what they did."""

import os
import time
import uuid
from collections import Counter
from pathlib import Path

import pyarrow as pa
import torch

from raypref.config import Resources
from raypref.ledger import Ledger
from raypref.loaded import shared
from raypref.rows import Row, reject

COUNT = 23
NUMBERS = pa.table({"id": [f"{n:03d}" for n in range(COUNT)], "n": list(range(COUNT))})


class Square:
    """Squares `n`; rejects what ends in 3; notes each call as a file."""

    name = "square"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("square", pa.int64())])

    def __init__(self, notes: Path, resources: Resources) -> None:
        self.notes = notes
        self.resources = resources

    def setup(self) -> None:
        note(self.notes, "setup")
        self.power = 2

    def __call__(self, rows: list[Row]) -> None:
        note(self.notes, f"{self.name}-{len(rows)}")
        for row in rows:
            if row["n"] % 10 == 3:
                reject(row, self.name, "three", f"{row['n']} ends in 3")
            else:
                row["square"] = row["n"] ** self.power


class Next(Square):
    """Adds one to the square; rejects what is above 400."""

    name = "next"
    reads: tuple[str, ...] = ("square",)
    writes = pa.schema([("next", pa.int64())])

    def __call__(self, rows: list[Row]) -> None:
        note(self.notes, f"{self.name}-{len(rows)}")
        for row in rows:
            row["next"] = row["square"] + 1  # a rejected row has no square
            if row["square"] > 400:
                reject(row, self.name, "large", "above 400")


class Fragile:
    """Notes every row; fails at one row, once some block is in the ledger."""

    name = "fragile"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("seen", pa.int64())])
    resources = Resources(workers=1, batch=1, num_cpus=0.25)

    def __init__(self, notes: Path, ledger: Ledger, *, fails_at: int | None) -> None:
        self.notes = notes
        self.ledger = ledger
        self.fails_at = fails_at

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        for row in rows:
            if row["n"] == self.fails_at:
                wait_for_a_part(self.ledger)
                raise RuntimeError(f"a bug at {row['n']}")
            note(self.notes, row["id"])
            row["seen"] = row["n"]


class Patient(Fragile):
    """Takes its time, so that the driver can say that it is enough."""

    def __call__(self, rows: list[Row]) -> None:
        time.sleep(0.3)
        super().__call__(rows)


class Together(Patient):
    """Two workers on a share of a GPU, which begin together however they were started."""

    resources = Resources(workers=2, batch=8, num_cpus=0.25, num_gpus=0.25)

    def setup(self) -> None:
        note(self.notes, "there")
        while sum(noted(self.notes).values()) < self.resources.workers:
            time.sleep(0.05)


class Hungry(Square):
    """Has memory for batches of `most` rows."""

    def __init__(self, notes: Path, resources: Resources, *, most: int) -> None:
        super().__init__(notes, resources)
        self.most = most

    def __call__(self, rows: list[Row]) -> None:
        if self.resources.batch > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().__call__(rows)


class Model:
    """Something that can be held."""


class Holder(Square):
    """Holds a model that stages of the same settings share; notes its loads and its process."""

    name = "holder"
    writes = pa.schema([("pid", pa.int64())])

    def __init__(self, notes: Path, config: str, resources: Resources) -> None:
        super().__init__(notes, resources)
        self.config = config

    def setup(self) -> None:
        self.model = shared(self.config, self._load)

    def _load(self) -> Model:
        note(self.notes, "load")
        return Model()

    def __call__(self, rows: list[Row]) -> None:
        note(self.notes, f"pid {os.getpid()}")
        for row in rows:
            row["pid"] = os.getpid()


class Timed:
    """Takes half a second a block, and notes when."""

    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([])

    def __init__(self, name: str, notes: Path, *, num_gpus: float, num_cpus: float) -> None:
        self.name = name
        self.notes = notes
        workers = int(num_gpus > 0)
        self.resources = Resources(workers=workers, batch=64, num_cpus=num_cpus, num_gpus=num_gpus)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        began = time.monotonic()
        time.sleep(0.5)
        note(self.notes, f"{self.name} {began} {time.monotonic()}")


def note(folder: Path, what: str) -> None:
    """Leave a mark that outlives the worker."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{what}-{uuid.uuid4().hex}").touch()


def noted(folder: Path) -> Counter[str]:
    """The marks, counted."""
    return Counter(path.name.rpartition("-")[0] for path in folder.iterdir())


def wait_for_a_part(ledger: Ledger) -> None:
    """Wait until a block has been written."""
    deadline = time.monotonic() + 240
    while not ledger.parts():
        assert time.monotonic() < deadline
        time.sleep(0.05)

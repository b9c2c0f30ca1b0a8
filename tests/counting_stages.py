"""Transforms that count, fail, wait or run out of memory, and leave a mark of what they did."""

import os
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from raypref.core.config import Resources
from raypref.core.ledger import Ledger
from raypref.core.rows import Row, reject
from raypref.engine.loaded import shared

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

    def prepare(self, rows: list[Row]) -> list[Any]:
        assert len(rows) <= self.resources.batch
        return [row[self.reads[0]] for row in rows]

    def compute(self, batch: list[Any]) -> list[Any]:
        return [n**self.power for n in batch]

    def finish(self, rows: list[Row], out: list[Any]) -> None:
        note(self.notes, f"{self.name}-{len(rows)}")
        for row, square in zip(rows, out, strict=False):
            if row["n"] % 10 == 3:
                reject(row, self.name, "three", f"{row['n']} ends in 3")
            else:
                row["square"] = square


class Next(Square):
    """Adds one to the square; rejects what is above 400."""

    name = "next"
    reads: tuple[str, ...] = ("square",)
    writes = pa.schema([("next", pa.int64())])

    def compute(self, batch: list[Any]) -> list[Any]:
        return [square + 1 for square in batch]  # a rejected row has no square

    def finish(self, rows: list[Row], out: list[Any]) -> None:
        note(self.notes, f"{self.name}-{len(rows)}")
        for row, number in zip(rows, out, strict=False):
            row["next"] = number
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

    def prepare(self, rows: list[Row]) -> list[int]:
        return [row["n"] for row in rows]

    def compute(self, batch: list[int]) -> list[int]:
        if self.fails_at in batch:
            wait_for_a_part(self.ledger)
            raise RuntimeError(f"a bug at {self.fails_at}")
        return batch

    def finish(self, rows: list[Row], out: list[int]) -> None:
        for row, n in zip(rows, out, strict=False):
            note(self.notes, row["id"])
            row["seen"] = n


class Patient(Fragile):
    """Takes its time, so that the driver can say that it is enough."""

    def compute(self, batch: list[int]) -> list[int]:
        time.sleep(0.3)
        return super().compute(batch)


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

    def compute(self, batch: list[Any]) -> list[Any]:
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().compute(batch)


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

    def compute(self, batch: list[Any]) -> list[Any]:
        return [os.getpid()] * len(batch)

    def finish(self, rows: list[Row], out: list[Any]) -> None:
        note(self.notes, f"pid {out[0]}")
        for row, pid in zip(rows, out, strict=False):
            row["pid"] = pid


class Reading:
    """Takes half a second per block, and notes when."""

    name = "read"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([])
    resources = Resources(workers=0, batch=64)

    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        timed(self.name, self.notes)


class Computing:
    """Holds the device for half a second per block, and notes when."""

    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([])

    def __init__(self, name: str, notes: Path, resources: Resources) -> None:
        self.name = name
        self.notes = notes
        self.resources = resources

    def setup(self) -> None:
        """Nothing to load."""

    def prepare(self, rows: list[Row]) -> None:
        """Nothing to read."""

    def compute(self, batch: None) -> None:
        timed(self.name, self.notes)

    def finish(self, rows: list[Row], out: None) -> None:
        """Nothing to add."""


def timed(name: str, notes: Path) -> None:
    """Take half a second, and note when."""
    began = time.monotonic()
    time.sleep(0.5)
    note(notes, f"{name} {began} {time.monotonic()}")


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


class Apart:
    """Squares numbers and notes where; the first process that is given `kills` dies of it."""

    def __init__(self, notes: Path, kills: int) -> None:
        self.notes = notes
        self.kills = kills

    def setup(self) -> None:
        note(self.notes, f"setup {os.getpid()}")

    def __call__(self, rows: list[Row]) -> list[int]:
        assert all(set(row) == {"n"} for row in rows), "only what is read is sent"
        note(self.notes, f"prepare {os.getpid()}")
        dead = self.notes / "dead"
        if any(row["n"] == self.kills for row in rows) and not dead.exists():
            dead.touch()
            os._exit(1)
        return [row["n"] ** 2 for row in rows]


class Pooled(Square):
    """Squares `n` in tasks on any node."""

    def __init__(self, notes: Path, resources: Resources) -> None:
        super().__init__(notes, resources)
        self.preparation = Apart(notes, kills=10)

    def prepare(self, rows: list[Row]) -> list[Any]:
        raise AssertionError("not in this process")

    def compute(self, batch: list[Any]) -> list[Any]:
        note(self.notes, f"compute {os.getpid()}")
        return batch

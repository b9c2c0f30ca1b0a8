"""A full disk and a full device: half a batch is tried, else one line, and nothing is damaged."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from small_disk import resize, small_disk

from raypref import cli
from raypref.align import checkpoints
from raypref.config import Resources
from raypref.ledger import Ledger
from raypref.room import NoRoomError, in_batches
from raypref.rows import Row, reject

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    with small_disk(tmp_path / "disk", kib=1024) as folder:
        yield folder


def files(folder: Path) -> list[str]:
    """All names in it, hidden ones too."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_part_on_a_full_disk(disk):
    small, large = (
        pa.table({"id": [id_], "image": [os.urandom(size)]})
        for id_, size in (("a", MIB // 2), ("b", MIB))
    )
    ledger = Ledger(str(disk / "ledger"), {})
    ledger.begin()
    first = ledger.write_part(small)
    with pytest.raises(NoRoomError, match=r"part-\w+\.parquet: no space left .*; make room"):
        ledger.write_part(large)
    assert files(disk) == sorted([first, "started.json"]), "something was left of the attempt"
    assert ledger.table().equals(small)
    resize(disk, kib=8192)
    ledger.write_part(large)
    ledger.commit(expected=2, counts={})
    assert ledger.table().equals(pa.concat_tables([small, large]))


def test_a_checkpoint_on_a_full_disk(disk):
    folder = str(disk / "checkpoints")
    weights = torch.arange(120_000.0)  # 480 kB: two fit, and the third is written before one goes
    for step in (1, 2):
        checkpoints.write(folder, step, {"weights": weights})
    with pytest.raises(NoRoomError, match=r"checkpoints/step-00000003\.safetensors: no space"):
        checkpoints.write(folder, 3, {"weights": weights})
    assert files(disk) == [f"step-0000000{step}.safetensors" for step in (1, 2)]
    found = checkpoints.latest(folder)
    assert found is not None and found[0] == 2
    torch.testing.assert_close(found[1]["weights"], weights)
    resize(disk, kib=8192)
    checkpoints.write(folder, 3, {"weights": weights})
    assert files(disk) == [f"step-0000000{step}.safetensors" for step in (2, 3)]


@pytest.mark.parametrize(
    "error",
    [
        NoRoomError("/runs/a: no space left; make room"),
        OSError(errno.ENOSPC, "No space left on device", "/runs/a"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/runs/a"),
    ],
)
def test_a_job_without_room_fails_in_one_line(error, capsys):
    def work() -> int:
        raise error

    assert cli.ended(work) == cli.FAILED
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert "/runs/a" in line
    assert "make room" in line
    assert "Traceback" not in out


class Model:
    """Doubles `n`, padding to its batch as models do; has memory for `most` rows."""

    name = "double"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("double", pa.int64())])

    def __init__(self, *, batch: int, most: int) -> None:
        self.resources = Resources(batch=batch)
        self.most = most
        self.calls: list[tuple[int, int]] = []

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        shape = self.resources.batch
        self.calls.append((len(rows), shape))
        if rows[0]["n"] == 5:  # rejected before memory runs out
            reject(rows[0], self.name, "five", "is 5")
        if shape > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        for row in rows:
            row["double"] = 2 * row["n"]


def test_half_the_batch_when_memory_runs_out():
    model = Model(batch=5, most=3)
    usual = model.resources
    rows: list[Row] = [{"n": n} for n in range(5, 13)]
    note = in_batches(model, rows)
    # The first row was rejected by the attempt and never comes in again.
    assert model.calls == [(5, 5), (2, 2), (2, 2), (2, 2), (1, 2)]
    assert [row.get("double") for row in rows] == [None, *range(12, 25, 2)]
    assert note == "double ran out of memory with resources.batch=5; used 2\n"
    assert model.resources is usual, "the next block is tried whole"
    assert in_batches(Model(batch=3, most=3), rows[1:]) == ""


@pytest.mark.parametrize(
    ("batch", "most", "calls", "says"),
    [
        (8, 2, 2, "resources.batch=8, and again with 4; set resources.batch .* to 2 "),
        (3, 0, 2, "resources.batch=3, and again with 1; one row is too much"),
        (1, 0, 1, "resources.batch=1; one row is too much"),
    ],
)
def test_half_the_batch_was_too_much_as_well(batch, most, calls, says):
    model = Model(batch=batch, most=most)
    with pytest.raises(NoRoomError, match=f"^stage double: memory ran out with {says}"):
        in_batches(model, [{"n": n} for n in range(9)])
    assert len(model.calls) == calls
    assert model.resources.batch == batch


def test_memory_of_the_cpu_counts_and_other_errors_do_not():
    class Large(Model):
        def __call__(self, rows: list[Row]) -> None:
            torch.empty(2**60, dtype=torch.uint8)

    class Broken(Model):
        def __call__(self, rows: list[Row]) -> None:
            raise RuntimeError("a bug")

    with pytest.raises(NoRoomError, match="memory ran out"):
        in_batches(Large(batch=2, most=0), [{"n": 1}])
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        in_batches(Broken(batch=2, most=0), [{"n": 1}])

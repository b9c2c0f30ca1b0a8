"""A full disk: one line says so, and nothing is damaged."""

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
from raypref.core.exhausted import NoRoomError
from raypref.core.ledger import Ledger

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
    assert files(disk) == sorted([first, ".started.json"]), "something was left of the attempt"
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

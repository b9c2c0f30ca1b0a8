"""A disk that fills: one line that names the file, nothing damaged, and it goes on with room.

Photographs on a full disk are a ledger's parts: tests/test_exhausted.py.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import job_here
from small_disk import resize, small_disk

from jobs import WHOLE, copy_of, job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PLAIN = (
    *WHOLE,
    'trainings=["stage1"]',
    *("train.stage1.steps=4", "train.stage1.checkpoint_every=2", "train.stage1.sample_every=0"),
    "tracking.uri=none",
)


ROOM = 2200  # KiB: for one checkpoint, not for two


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", kib=32_000) as folder:
        yield folder


def test_a_training_on_a_disk_that_fills(
    full: tuple[Path, str], disk: Path, tmp_path: Path
) -> None:
    run = copy_of(full[0], disk)

    blocks = os.statvfs(disk)
    taken = (blocks.f_blocks - blocks.f_bfree) * blocks.f_frsize // 1024
    resize(disk, kib=taken + ROOM)
    command = ("align", *PLAIN, f"storage={disk}")
    code, output = job(*command, folder=tmp_path / "logs")
    assert code == 1 and "Traceback" not in output, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.search(r"stage1/checkpoints/step-00000004\.safetensors: no space left", line)
    assert [path.name for path in run.glob("stage1/checkpoints/*")] == ["step-00000002.safetensors"]

    hidden = [path for path in disk.rglob(".*") if path.is_file()]
    assert {path.suffix for path in hidden} == {".json"}, "half a file was left"

    resize(disk, kib=32_000)
    code, output = job_here(*command)
    assert code == 0, output
    assert re.search(r"stage1: 4/4 steps", output) and "stage1: 2/4 steps" not in output
    assert (run / "stage1" / "pytorch_lora_weights.safetensors").is_file()

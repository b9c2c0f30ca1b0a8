"""A disk that fills: one line that names the file, nothing damaged, and it goes on with room.

Photographs on a full disk are a ledger's parts: tests/test_exhausted.py.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
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

    def attempt() -> tuple[int, list[str]]:
        code, output = job("align", *PLAIN, f"storage={disk}", folder=tmp_path / "logs")
        assert "Traceback" not in output, output
        hidden = [path for path in disk.rglob(".*") if path.is_file()]
        temporary = [path for path in hidden if path.suffix != ".json"]  # a ledger has two
        assert not temporary, "half a file was left"
        return code, [line for line in output.splitlines() if line.startswith("error: ")]

    blocks = os.statvfs(disk)
    taken = (blocks.f_blocks - blocks.f_bfree) * blocks.f_frsize // 1024
    resize(disk, kib=taken + ROOM)
    code, (line,) = attempt()
    assert code == 1
    assert re.search(r"stage1/checkpoints/step-00000004\.safetensors: no space left", line)
    assert [path.name for path in run.glob("stage1/checkpoints/*")] == ["step-00000002.safetensors"]

    resize(disk, kib=32_000)
    assert attempt() == (0, [])
    assert (run / "stage1" / "pytorch_lora_weights.safetensors").is_file()

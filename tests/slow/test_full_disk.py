"""A disk that fills: one line that names the file, nothing damaged, and it goes on with room."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import resize, small_disk

from jobs import SMALL, job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PLAIN = (*SMALL, "tracking.uri=none", "stage1.checkpoint_every=2", "stage1.sample_every=0")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Room for the photographs' measures, but not for a part of pairs."""
    with small_disk(tmp_path / "disk", kib=200) as folder:
        yield folder


def test_a_run_on_a_disk_that_fills_twice(disk: Path, tmp_path: Path) -> None:
    def attempt(name: str) -> tuple[int, list[str]]:
        code, output = job(name, *PLAIN, f"storage={disk}", folder=tmp_path / "logs")
        assert "Traceback" not in output, output
        temporary = [path for path in disk.rglob(".*") if path.is_file()]
        assert not temporary, "half a file was left"
        return code, [line for line in output.splitlines() if line.startswith("error: ")]

    code, (line,) = attempt("curate")
    assert code == 1
    assert re.search(r"curate/twins/part-\w+\.parquet: no space left for [\d,]+ bytes; make", line)

    resize(disk, kib=2600)  # for pairs, latents and one checkpoint
    assert attempt("curate") == (0, [])
    code, (line,) = attempt("align")
    assert code == 1
    assert re.search(r"stage1/checkpoints/step-00000004\.safetensors: no space left", line)
    assert [path.name for path in disk.glob("run/stage1/checkpoints/*")] == [
        "step-00000002.safetensors"
    ]

    resize(disk, kib=32_000)
    assert attempt("align") == (0, [])
    assert (disk / "run" / "stage2" / "pytorch_lora_weights.safetensors").is_file()

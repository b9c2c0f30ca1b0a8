"""A run's folder belongs to one job at a time, and one that cannot be written is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from raypref.cli import main
from raypref.core.config import InputError
from raypref.core.job_lock import only_job_in

HOLD = """
import sys
from raypref.core.job_lock import only_job_in
with only_job_in(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_job_in_the_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        refused = pytest.raises(InputError, match=r"mine is in use by another job; .*run=NAME")
        with refused, only_job_in(str(folder)):
            pass
        with only_job_in(str(tmp_path / "runs" / "other")):
            pass
        first.kill()  # nobody tidies up
    with only_job_in(str(folder)):
        pass


def test_a_command_is_refused_a_run_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_job_in(str(tmp_path / "run")):
        status = main("curate", ["tiny", f"storage={tmp_path}"], program="raypref curate")
    assert status == 2 and "is in use by another job" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["job.lock"]


@pytest.mark.parametrize("storage", ["a-file", "a-file/below"])
def test_a_storage_that_cannot_be_written_is_one_line(tmp_path: Path, storage: str) -> None:
    (tmp_path / "a-file").write_text("no folder")
    refused = pytest.raises(InputError, match=r"storage: .* cannot be written")
    with refused as caught, only_job_in(str(tmp_path / storage / "run")):
        pass
    assert "\n" not in str(caught.value)


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    with only_job_in(str(tmp_path / "run")):
        assert "start one job at a time" in caplog.text

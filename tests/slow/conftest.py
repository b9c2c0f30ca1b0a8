"""One whole run, undisturbed, that several files compare with."""

from pathlib import Path

import pytest
from filelock import FileLock

from jobs import RECORDED, job

# Files in the order in which two processes take them (--dist loadfile --no-loadscope-reorder):
# first the whole run that others need and a file that does not need it soon; then the longest
# first. xdist queues a file behind one of one or two tests at once.
ORDER = (
    *("test_full_run.py", "test_hosts.py", "test_sweep.py", "test_evaluate.py"),
    *("test_kill.py", "test_interrupt.py", "test_kill_stream.py", "test_job_submit.py"),
    *("test_candidates.py", "test_examples.py", "test_workers.py", "test_on_top.py"),
    *("test_full_disk.py", "test_gpu_benchmark_whole.py", "test_remake.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests by ORDER; what is not in it comes last."""

    def place(item: pytest.Item) -> int:
        return ORDER.index(item.path.name) if item.path.name in ORDER else len(ORDER)

    items.sort(key=place)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> tuple[Path, str]:
    """The folder of a whole run and what the job said. Nothing may be changed in it.

    Made once, by whichever process of pytest-xdist needs it first.
    """
    own = tmp_path_factory.getbasetemp()
    storage = (own if worker_id == "master" else own.parent) / "full"
    said = storage / "said.txt"
    with FileLock(storage.with_suffix(".lock")):
        if not said.is_file():
            command = ("full_pipeline", *RECORDED, f"storage={storage}")
            code, output = job(*command, folder=storage / "logs")
            assert code == 0, output
            said.write_text(output)
    return storage / "run", said.read_text()

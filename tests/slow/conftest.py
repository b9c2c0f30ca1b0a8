"""One whole run, undisturbed, that several files compare with."""

from pathlib import Path

import pytest
from filelock import FileLock

from jobs import WHOLE, job


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
            command = ("full_pipeline", *WHOLE, f"storage={storage}")
            code, output = job(*command, folder=storage / "logs")
            assert code == 0, output
            said.write_text(output)
    return storage / "run", said.read_text()

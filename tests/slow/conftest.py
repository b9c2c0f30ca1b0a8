"""One whole run, undisturbed, that several files compare with."""

from pathlib import Path

import pytest

from jobs import WHOLE, job


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole run and what the job said. Nothing may be changed in it."""
    storage = tmp_path_factory.mktemp("full")
    code, output = job(
        "full_pipeline", *WHOLE, f"storage={storage}", folder=storage / "logs", patience=600
    )
    assert code == 0, output
    return storage / "run", output

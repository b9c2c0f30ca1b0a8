"""One whole run, undisturbed, that several files compare with; who shares it runs together."""

from pathlib import Path

import pytest

from jobs import WHOLE, job


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests go to one process; so do all that need the whole run, which is made once."""
    for item in items:
        needs = getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("full" if "full" in needs else item.path.stem))


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole run and what the job said. Nothing may be changed in it."""
    storage = tmp_path_factory.mktemp("full")
    code, output = job(
        "full_pipeline", *WHOLE, f"storage={storage}", folder=storage / "logs", patience=600
    )
    assert code == 0, output
    return storage / "run", output

"""No network, one thread, the same draws; the photographs beside the project when present."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What a test draws without a generator is the same each time, alone or among others.

    Tests of bitsandbytes are skipped where it is missing; `make test-quantised` installs it.
    """
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` looks for devices, every time
    if item.get_closest_marker("bitsandbytes") and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs and published maps kept beside the project."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here: the project stands alone")
    return DATA

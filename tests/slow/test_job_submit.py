"""The jobs on a running cluster: `ray job submit` from a checkout."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import RAY, REPOSITORY, SMALL, TOKEN, Job, node, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Job]]:
    """Address of the job server of a cluster of one node."""
    with node(tmp_path_factory.mktemp("head"), "--head", cores=4) as (job, ports):
        yield f"http://127.0.0.1:{ports['dashboard-port']}", job


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as people have it: with results and an environment lying in it."""
    copy = tmp_path_factory.mktemp("user") / "raypref"
    copy.mkdir()
    for name in ("raypref", "jobs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, copy / name, ignore=ignored)
    for name in (".gitignore", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, copy)
    for name in ("runs/old/pairs", ".venv/lib", ".git/objects"):
        (copy / name).mkdir(parents=True)
        (copy / name / "large.bin").write_bytes(bytes(range(256)) * 20_000)
    return copy


def submit(head: tuple[str, Job], checkout: Path, *words: str, folder: Path) -> tuple[int, str]:
    """`ray job submit`, with a variable as users hand on; exit status and output."""
    address, _ = head
    own = json.dumps({"env_vars": {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}})
    with running(
        *(RAY, "job", "submit", f"--address={address}", f"--working-dir={checkout}"),
        *(f"--runtime-env-json={own}", "--", "python", *words),
        folder=folder,
        env=TOKEN,
    ) as job:
        return job.wait(800), job.output


def test_the_whole_job_submitted(head, checkout: Path, tmp_path: Path) -> None:
    code, output = submit(
        head, checkout, "jobs/full_pipeline.py", *SMALL, f"storage={tmp_path}", folder=tmp_path
    )
    assert code == 0, output
    assert "succeeded" in output
    assert (tmp_path / "run" / "report" / "index.html").is_file()
    unpacked = list(head[1].scratch.glob("ray/session_*/runtime_resources/**/_ray_pkg_*"))
    uploaded = {path.name for package in unpacked for path in package.rglob("*")}
    assert "full_pipeline.py" in uploaded
    assert "large.bin" not in uploaded, "results or an environment were uploaded"


def test_a_wrong_setting_fails_the_job(head, checkout: Path, tmp_path: Path) -> None:
    code, output = submit(
        *(head, checkout, "jobs/full_pipeline.py", "tiny", "select.topk=3"),
        folder=tmp_path,
    )
    assert code != 0
    assert "error: unknown key 'select.topk'; the nearest known key is 'select.top_k'" in output
    assert re.search(r"Job '\S+' failed", output)

"""The jobs on a running cluster: `ray job submit` from a checkout."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from jobs import EVERY, RAY, REPOSITORY, TOKEN, WHOLE, Job, copy_of, node, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


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


def ray_job(
    head: tuple[str, Job], verb: str, *words: str, folder: Path
) -> AbstractContextManager[Job]:
    """`ray job VERB ...`."""
    command = (RAY, "job", verb, f"--address={head[0]}", *words)
    return running(*command, folder=folder, env=TOKEN)


def submit(
    head: tuple[str, Job], checkout: Path, *words: str, folder: Path, options: tuple[str, ...] = ()
) -> tuple[int, str]:
    """`ray job submit`, with a variable as users hand on; exit status and output."""
    own = json.dumps({"env_vars": {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}})
    about = (f"--working-dir={checkout}", f"--runtime-env-json={own}", *options)
    with ray_job(head, "submit", *about, "--", "python", *words, folder=folder) as job:
        return job.wait(), job.output


def stop(head: tuple[str, Job], submission: str) -> None:
    """What `ray job stop` asks of the server; that command takes many steps' time to start."""
    request = Request(
        f"{head[0]}/api/jobs/{submission}/stop",
        headers={"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"},
        method="POST",
    )
    with urlopen(request) as answer:
        assert json.load(answer) == {"stopped": True}


def test_a_wrong_setting_fails_the_job(head, checkout: Path, tmp_path: Path) -> None:
    code, output = submit(
        *(head, checkout, "jobs/full_pipeline.py", "tiny", "select.topk=3"),
        folder=tmp_path,
    )
    assert code != 0
    assert "error: unknown key 'select.topk'; the nearest known key is 'select.top_k'" in output
    assert re.search(r"Job '\S+' failed", output)


def test_followed_stopped_and_submitted_again(
    full: tuple[Path, str], head, checkout: Path, tmp_path: Path
) -> None:
    steps = 48  # more than are done while the stop is on its way
    command = (
        *("jobs/align.py", *WHOLE, f"storage={tmp_path}", 'trainings=["stage1"]'),
        *(f"train.stage1.steps={steps}", "train.stage1.sample_every=0", "tracking.uri=none"),
    )
    run = copy_of(full[0], tmp_path)
    shutil.rmtree(run / "cache")  # the cluster encodes the pairs
    saved = run / "stage1" / "checkpoints"

    def parts() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in run.rglob("part-*")}

    first = ("--no-wait", "--submission-id=first-1")
    code, output = submit(head, checkout, *command, folder=tmp_path / "1", options=first)
    assert code == 0, output
    with ray_job(head, "logs", "-f", "first-1", folder=tmp_path / "2") as logs:
        logs.wait_for(lambda: any(saved.glob("step-*")))
        stop(head, "first-1")
        logs.wait()
    assert re.search(r"cache: \d+/\d+ rows, .* dropped, workers busy", logs.output)
    assert re.search(rf"stage1: \d+/{steps} steps, .* loss ", logs.output)
    done = int(max(saved.glob("step-*")).stem.removeprefix("step-"))
    assert EVERY <= done < steps, "the stop came too late to test anything"
    before = parts()

    second = ("--submission-id=first-2",)
    code, output = submit(head, checkout, *command, folder=tmp_path / "5", options=second)

    assert code == 0, output
    assert "Job 'first-2' succeeded" in output
    assert "cache: skipped, complete" in output
    assert before.items() <= parts().items(), "a finished part was written again"
    again = [int(n) for n in re.findall(rf"stage1: (\d+)/{steps} steps", output)]
    assert min(again) > done, "steps before the checkpoint were done again"
    assert (run / "stage1" / "pytorch_lora_weights.safetensors").is_file()

    unpacked = list(head[1].scratch.glob("ray/session_*/runtime_resources/**/_ray_pkg_*"))
    uploaded = {path.name for package in unpacked for path in package.rglob("*")}
    assert "align.py" in uploaded
    assert "large.bin" not in uploaded, "results or an environment were uploaded"

"""Promise 2: kill anything, run the same command again, and the result is that of a quiet run."""

import os
import re
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from noted_stream import BLOCK as NOTED_BLOCK
from noted_stream import ROWS as NOTED_ROWS
from noted_stream import WORKERS as NOTED_WORKERS
from safetensors.torch import load_file

from jobs import REPOSITORY, SMALL, TOKEN, Job, end, job, node, running, start

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(600)]

BLOCK = 4
STEPS = 24
EVERY = 4
SETTINGS = (
    *SMALL,
    "source.limit=32",
    "curate.exhaustive=true",  # how many pairs are made then does not depend on time
    f"stream.block_rows={BLOCK}",
    "stream.progress_seconds=0",
    f"stage1.steps={STEPS}",
    f"stage1.checkpoint_every={EVERY}",
    "stage2.steps=1",
    "tracking.uri=none",
)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed, curated and aligned."""
    storage = tmp_path_factory.mktemp("quiet")
    for name in ("curate", "align"):
        code, output = job(name, *SETTINGS, f"storage={storage}", folder=storage / "logs")
        assert code == 0, output
    return storage / "run"


@pytest.fixture
def curated(quiet: Path, tmp_path: Path) -> Path:
    """A run folder in which curation is done and alignment is still to do."""
    run = tmp_path / "run"
    for name in ("curate", "photos", "rejects", "pairs"):
        shutil.copytree(quiet / name, run / name)
    return run


def parts(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished part."""
    stats = {path.name: path.stat() for path in folder.glob("part-*")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def rows(folder: Path) -> list[dict[str, object]]:
    """All rows by id."""
    files = [str(path) for path in folder.glob("part-*.parquet")]
    table = pyarrow.dataset.dataset(files, format="parquet").to_table()
    return table.sort_by("id").to_pylist()


def assert_same_weights(ours: Path, theirs: Path) -> None:
    name = "pytorch_lora_weights.safetensors"
    one, other = load_file(ours / name), load_file(theirs / name)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=1e-6)


def assert_whole_history(stage: Path, quiet_stage: Path) -> None:
    """Every step once, with the numbers of the quiet run (times differ)."""
    table = pq.read_table(stage / "metrics.parquet")
    expected = pq.read_table(quiet_stage / "metrics.parquet")
    assert table.schema.equals(expected.schema)
    assert table["step"].to_pylist() == list(range(1, STEPS + 1))
    for name in set(expected.column_names) - {"seconds", "images_per_second"}:
        assert table[name].to_pylist() == pytest.approx(expected[name].to_pylist(), abs=1e-6), name


@pytest.mark.parametrize(
    ("parts_before", "gpus"), [(0, "0"), (1, "0"), (5, "0"), (0, "0.5"), (3, "0.5")]
)
def test_a_killed_stream_repeats_at_most_one_block_a_worker(
    parts_before: int, gpus: str, tmp_path: Path
):
    script = str(Path(__file__).with_name("noted_stream.py"))
    command = (sys.executable, script, str(tmp_path), "0.5", gpus)
    path = {"PYTHONPATH": str(REPOSITORY)}
    ledger, notes = tmp_path / "ledger", tmp_path / "notes"
    with running(*command, folder=tmp_path / "logs", env=path) as killed:
        killed.wait_for(lambda: any(notes.glob("quick-*")) and len(parts(ledger)) >= parts_before)
        killed.kill_driver()
    written = {str(row["id"]) for row in rows(ledger)} if parts(ledger) else set()
    assert len(written) < NOTED_ROWS, "the kill came too late to test anything"

    with running(*command, folder=tmp_path / "logs", env=path) as again:
        assert again.wait() == 0, again.output

    assert len(rows(ledger)) == NOTED_ROWS
    for stage in ("quick", "slow"):
        times = Counter(path.name.split("-")[1] for path in notes.glob(f"{stage}-*"))
        assert len(times) == NOTED_ROWS
        repeated = {id_ for id_, count in times.items() if count > 1}
        assert not repeated & written, "a written row was done again"
        assert max(times.values()) <= 2
        ahead = 2 if gpus != "0" and stage == "quick" else 1  # read while the model works
        assert len(repeated) <= NOTED_WORKERS * NOTED_BLOCK * ahead
        print(f"{stage}: {len(repeated)} rows done twice")


@pytest.mark.parametrize("parts_before", [0, 2, 5])
def test_a_killed_actor_repeats_at_most_its_block(parts_before: int, tmp_path: Path):
    """The job goes on by itself: Ray starts the actor again and gives it the block once more."""
    command = (sys.executable, str(Path(__file__).with_name("noted_stream.py")), str(tmp_path))
    path = {"PYTHONPATH": str(REPOSITORY)}
    ledger, notes = tmp_path / "ledger", tmp_path / "notes"
    with running(*command, folder=tmp_path / "logs", env=path) as stream:
        stream.wait_for(lambda: any(notes.glob("quick-*")) and len(parts(ledger)) >= parts_before)
        victim, *_ = stream.workers("MapWorker")
        os.kill(victim, signal.SIGKILL)
        assert stream.wait() == 0, stream.output
    assert len(rows(ledger)) == NOTED_ROWS
    for stage in ("quick", "slow"):
        times = Counter(path.name.split("-")[1] for path in notes.glob(f"{stage}-*"))
        assert len(times) == NOTED_ROWS
        repeated = sum(times.values()) - NOTED_ROWS
        print(f"{stage}: {repeated} rows done twice")
        assert repeated <= NOTED_BLOCK


def in_hand(node: Job, notes: Path, ledger: Path) -> bool:
    """Whether a worker of the node has begun a row that is not written yet."""
    workers = set(map(str, node.workers("MapWorker")))
    noted = [path.name.split("-") for path in notes.glob("slow-*")]
    begun = {id_ for _, id_, pid, _ in noted if pid in workers}
    return bool(begun - {str(row["id"]) for row in rows(ledger)} if parts(ledger) else begun)


@pytest.mark.parametrize("parts_before", [0, 2, 5])
def test_a_killed_node_repeats_at_most_its_block(parts_before: int, tmp_path: Path) -> None:
    """Two nodes, a worker on each; one dies with all its processes and the other does the rest."""
    command = (sys.executable, str(Path(__file__).with_name("noted_stream.py")), str(tmp_path), "1")
    ledger, notes = tmp_path / "ledger", tmp_path / "notes"
    with (
        node(tmp_path / "logs", "--head", cores=1) as (head, ports),
        node(
            tmp_path / "logs", f"--address=127.0.0.1:{ports['port']}", cores=1, ip="127.0.0.2"
        ) as (second, _),
    ):
        env = {"PYTHONPATH": str(REPOSITORY), "RAY_TMPDIR": str(head.scratch), **TOKEN}
        env["RAY_ADDRESS"] = f"127.0.0.1:{ports['port']}"
        with running(*command, folder=tmp_path / "logs", env=env) as stream:
            stream.wait_for(
                lambda: in_hand(second, notes, ledger) and len(parts(ledger)) >= parts_before
            )
            end(second.mark)
            assert stream.wait() == 0, stream.output
    assert len(rows(ledger)) == NOTED_ROWS
    for stage in ("quick", "slow"):
        times = Counter(path.name.split("-")[1] for path in notes.glob(f"{stage}-*"))
        assert len(times) == NOTED_ROWS
        repeated = sum(times.values()) - NOTED_ROWS
        print(f"{stage}: {repeated} rows done twice")
        assert repeated <= NOTED_BLOCK


def test_driver_killed_while_it_curates(quiet: Path, tmp_path: Path) -> None:
    command = ("curate", *SETTINGS, f"storage={tmp_path}")
    run = tmp_path / "run"
    twins = run / "curate" / "twins"
    with start(*command, folder=tmp_path) as killed:
        killed.wait_for(lambda: len(parts(twins)) >= 1)
        killed.kill_driver()
    done = {str(row["id"]) for row in rows(twins)}
    expected = {str(row["id"]) for row in rows(quiet / "curate" / "twins")}
    assert done < expected, "the kill came too late to test anything"
    assert not (twins / "manifest.json").exists()
    assert not (run / "pairs").exists()
    before = {name: parts(run / "curate" / name) for name in ("measured", "twins")}

    code, output = job(*command, folder=tmp_path)

    assert code == 0, output
    for name, finished in before.items():
        after = parts(run / "curate" / name)
        assert finished.items() <= after.items(), "a finished part was written again"
    # What was finished was not computed again either.
    assert f"twins: {len(done)} of {len(expected)} rows were done before" in output
    assert re.search(r"measured: (\d+)/\1 rows", output) is None
    ids = [row["id"] for row in rows(twins)]
    assert len(ids) == len(set(ids)) == len(expected)
    for name in ("pairs", "photos", "rejects"):
        assert rows(run / name) == rows(quiet / name)
    assert rows(twins) == rows(quiet / "curate" / "twins")


def test_driver_killed_while_it_looks_for_enough_pairs(quiet: Path, tmp_path: Path) -> None:
    """How many pairs are made may differ; which are selected may not."""
    settings = [s for s in SETTINGS if s != "curate.exhaustive=true"]
    command = ("curate", *settings, f"storage={tmp_path}")
    twins = tmp_path / "run" / "curate" / "twins"
    with start(*command, folder=tmp_path) as killed:
        killed.wait_for(lambda: len(parts(twins)) >= 1)
        killed.kill_driver()
    before = parts(twins)
    assert not (twins / "manifest.json").exists()

    code, output = job(*command, folder=tmp_path)

    assert code == 0, output
    assert before.items() <= parts(twins).items(), "a finished part was written again"
    ids = [row["id"] for row in rows(twins)]
    assert len(ids) == len(set(ids))
    assert rows(tmp_path / "run" / "pairs") == rows(quiet / "pairs")
    assert rows(tmp_path / "run" / "rejects") == rows(quiet / "rejects")


def test_driver_killed_while_it_trains(quiet: Path, curated: Path, tmp_path: Path) -> None:
    command = ("align", *SETTINGS, f"storage={tmp_path}")
    saved = curated / "stage1" / "checkpoints"
    with start(*command, folder=tmp_path) as killed:
        killed.wait_for(lambda: any(saved.glob("step-*.safetensors")))
        killed.kill_driver()
    last = max(saved.glob("step-*.safetensors"))
    tensors = load_file(last)
    step = len(tensors["history.step"])
    assert last.name == f"step-{step:08d}.safetensors"
    assert step < STEPS, "the kill came too late to test anything"
    assert not (curated / "stage1" / "pytorch_lora_weights.safetensors").exists()
    cache = parts(curated / "cache")

    code, output = job(*command, folder=tmp_path)

    assert code == 0, output
    assert "pairs: " not in output  # not its step
    assert "cache: skipped, complete" in output
    assert parts(curated / "cache") == cache
    # The first step only starts the clock; every one after it logs a line.
    logged = [int(n) for n in re.findall(rf"stage1: (\d+)/{STEPS} steps", output)]
    assert min(logged) == min(step + 2, STEPS), "steps before the checkpoint were done again"
    assert_whole_history(curated / "stage1", quiet / "stage1")
    seconds = pq.read_table(curated / "stage1" / "metrics.parquet")["seconds"].to_pylist()
    assert seconds[:step] == tensors["history.seconds"].tolist()
    for stage in ("stage1", "stage2"):
        assert_same_weights(curated / stage, quiet / stage)
        assert not (curated / stage / "ray").exists()


def test_training_worker_killed(quiet: Path, curated: Path, tmp_path: Path) -> None:
    saved = curated / "stage1" / "checkpoints"
    with start("align", *SETTINGS, f"storage={tmp_path}", folder=tmp_path) as align:
        align.wait_for(lambda: any(saved.glob("step-*.safetensors")))
        (worker,) = align.workers("RayTrainWorker")
        os.kill(worker, signal.SIGKILL)
        code = align.wait()
        output = align.output
    assert code == 0, output
    logged = [int(n) for n in re.findall(rf"stage1: (\d+)/{STEPS} steps", output)]
    repeated = len(logged) - len(set(logged))
    assert repeated < EVERY, f"{repeated} steps were done twice"
    assert_whole_history(curated / "stage1", quiet / "stage1")
    for stage in ("stage1", "stage2"):
        assert_same_weights(curated / stage, quiet / stage)

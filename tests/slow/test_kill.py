"""Promise 2: kill anything, run the same command again, and the result is that of a quiet run.

The driver started its Ray itself, as on a laptop; streams on a cluster are in test_kill_stream.py.
"""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from jobs import EVERY, STEPS, WHOLE, copy_of, job, start

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def quiet(full: tuple[Path, str]) -> Path:
    """The folder of a run that nobody disturbed."""
    return full[0]


def parts(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished part."""
    stats = {path.name: path.stat() for path in folder.glob("part-*")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def rows(folder: Path) -> list[dict[str, Any]]:
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


# Pairs in rank order until enough have passed, by two workers, in other cuts of the work than
# those of the one worker of the quiet run, which makes all.
IN_WAVES = (
    *(word for word in WHOLE if word != "curate.exhaustive=true"),
    *("stream.block_rows=2", "stream.part_rows=7", "saliency.resources.workers=2"),
    *(f"{stage}.resources.num_cpus=0.5" for stage in ("saliency", "perturb", "pickscore")),
)


def test_driver_killed_while_it_curates(quiet: Path, tmp_path: Path) -> None:
    """How many pairs are made may differ; which are selected may not."""
    command = ("curate", *IN_WAVES, f"storage={tmp_path}")
    run = tmp_path / "run"
    twins = run / "curate" / "twins"
    with start(*command, folder=tmp_path) as killed:
        killed.wait_for(lambda: len(parts(twins)) >= 1)
        killed.kill_driver()
    done = {str(row["id"]) for row in rows(twins)}
    expected = {str(row["id"]): row for row in rows(quiet / "curate" / "twins")}
    assert done < expected.keys(), "the kill came too late to test anything"
    assert not (twins / ".manifest.json").exists()
    assert not (run / "pairs").exists()
    before = {name: parts(run / "curate" / name) for name in ("measured", "twins")}

    code, output = job(*command, folder=tmp_path)

    assert code == 0, output
    for name, finished in before.items():
        after = parts(run / "curate" / name)
        assert finished.items() <= after.items(), "a finished part was written again"
    # What was finished was not computed again either.
    assert re.search(rf"twins: {len(done)} of \d+ rows were done before", output)
    assert re.search(r"measured: (\d+)/\1 rows", output) is None
    made = rows(twins)
    assert len(made) == len({row["id"] for row in made})
    assert all(row == expected[row["id"]] for row in made)
    assert len(parts(run / "curate" / "measured")) > 1
    for name in ("pairs", "rejects"):
        assert rows(run / name) == rows(quiet / name)
    assert len(rows(run / "pairs")) <= len(made) < len(expected)
    # What became of the photographs does not tell how many twins were made: those that come after
    # the last pair were not needed.
    ours, theirs = (rows(each / "photos") for each in (run, quiet))
    last = min(row["pickscore"] for row in theirs if row["status"] == "pair")
    for row, other in zip(ours, theirs, strict=True):
        if row["reason"] == "not_needed":
            assert other["pickscore"] < last
            assert other["status"] != "pair"
        else:
            assert row == other
    assert any(row["reason"] == "not_needed" for row in ours)


def test_worker_then_driver_killed_while_they_train(quiet: Path, tmp_path: Path) -> None:
    """The worker comes back by itself; after the driver's end the same command goes on."""
    run = copy_of(quiet, tmp_path)
    cache = parts(run / "cache")
    command = ("align", *WHOLE, f"storage={tmp_path}")
    saved = run / "stage1" / "checkpoints"

    def last() -> Path:
        return max(saved.glob("step-*.safetensors"), default=Path("step-00000000"))

    with start(*command, folder=tmp_path) as killed:
        killed.wait_for(lambda: any(saved.glob("step-*.safetensors")))
        (worker,) = killed.workers("RayTrainWorker")
        before = last().name
        os.kill(worker, signal.SIGKILL)
        killed.wait_for(lambda: last().name > before)
        killed.kill_driver()
        output = killed.output
    logged = [int(n) for n in re.findall(rf"stage1: (\d+)/{STEPS} steps", output)]
    repeated = len(logged) - len(set(logged))
    assert repeated < EVERY, f"{repeated} steps were done twice"
    assert sorted(set(logged)) == list(range(min(logged), max(logged) + 1))
    tensors = load_file(last())
    step = len(tensors["history.step"])
    assert last().name == f"step-{step:08d}.safetensors"
    assert step < STEPS, "the kill came too late to test anything"
    assert not (run / "stage1" / "pytorch_lora_weights.safetensors").exists()

    code, output = job(*command, folder=tmp_path)

    assert code == 0, output
    assert output.splitlines()[-1].startswith("LoRA: ")
    assert "pairs: " not in output  # not its step
    assert "cache: skipped, complete" in output
    assert parts(run / "cache") == cache
    # The first step only starts the clock; every one after it logs a line.
    logged = [int(n) for n in re.findall(rf"stage1: (\d+)/{STEPS} steps", output)]
    assert min(logged) == min(step + 2, STEPS), "steps before the checkpoint were done again"
    assert_whole_history(run / "stage1", quiet / "stage1")
    seconds = pq.read_table(run / "stage1" / "metrics.parquet")["seconds"].to_pylist()
    assert seconds[:step] == tensors["history.seconds"].tolist()
    for stage in ("stage1", "stage2"):
        assert_same_weights(run / stage, quiet / stage)
        assert not (run / stage / "ray").exists()

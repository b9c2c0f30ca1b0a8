"""Stages on a real, small Ray: what comes out does not tell how the work was cut."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import counting_stages
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
from counting_stages import (
    COUNT,
    NUMBERS,
    Computing,
    Fragile,
    Holder,
    Hungry,
    Next,
    Patient,
    Pooled,
    Reading,
    Square,
    Together,
    noted,
)

from raypref.core.config import Resources
from raypref.core.exhausted import NoRoomError
from raypref.core.ledger import Ledger
from raypref.core.rows import REJECT, Row, reject
from raypref.engine.cluster import start_ray
from raypref.engine.kept import release
from raypref.engine.stream import Selection, StreamConfig, stream, stream_branches
from raypref.engine.worker import Branch, shared_worker


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray. Tests of one shape of workers stand side by side: they share the processes."""
    ray.init(num_cpus=4, num_gpus=1, log_to_driver=False)  # Ray takes our word for both
    start_ray()
    # The stages travel whole: workers cannot import them.
    ray.cloudpickle.register_pickle_by_value(counting_stages)
    yield
    release()
    ray.shutdown()


def run(
    folder: Path, rows: pa.Table | Selection = NUMBERS, *, block_rows: int, **resources: Any
) -> tuple[Ledger, Counter[str]]:
    """Send rows through `Square` and `Next`."""
    need = Resources(num_cpus=0.25, **resources)
    ledger = Ledger(str(folder / "ledger"), {"work": "squares"})
    streamed = stream(
        rows,
        stages=[Square(folder / "square", need), Next(folder / "next", need)],
        ledger=ledger,
        keep=["next", "n"],
        config=StreamConfig(block_rows=block_rows),
    )
    assert (streamed.busy > 0) == (need.workers > 0 and streamed.counts.total() > 0)
    return ledger, streamed.counts


def expected_rows() -> list[Row]:
    """What must come out, worked out by hand."""
    rows = []
    for n in range(COUNT):
        row: Row = {"id": f"{n:03d}", "next": n * n + 1, "n": n, **dict.fromkeys(REJECT.names)}
        if n in (3, 13):
            row["next"] = None
            reject(row, "square", "three", f"{n} ends in 3")
        if n in (21, 22):
            reject(row, "next", "large", "above 400")
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("block_rows", "workers", "batch", "gpus"),
    [(64, 1, 64, 0), (5, 0, 1, 0), (4, 2, 3, 0.25)],
    ids=["one block", "tasks", "two actors on one GPU"],
)
def test_rows_come_out_the_same_however_the_work_is_cut(block_rows, workers, batch, gpus, tmp_path):
    ledger, counts = run(
        tmp_path, block_rows=block_rows, workers=workers, batch=batch, num_gpus=gpus
    )
    assert ledger.table().to_pylist() == expected_rows()
    assert counts == {"ok": COUNT - 4, "three": 2, "large": 2}
    assert ledger.manifest()["counts"] == counts
    assert len(ledger.parts()) == -(-COUNT // block_rows)
    for stage, live in (("square", COUNT), ("next", COUNT - 2)):
        calls = noted(tmp_path / stage)
        setups = calls.pop("setup")
        assert workers == 0 or 1 <= setups <= workers
        sizes = {int(name.rpartition("-")[2]): times for name, times in calls.items()}
        assert sum(size * times for size, times in sizes.items()) == live
        assert max(sizes) == min(batch, live)


def test_no_worker_queues_the_best_blocks_while_another_makes_later_ones(tmp_path):
    ledger, numbers = Ledger(str(tmp_path / "ledger"), {}), []

    def enough(part: str) -> bool:
        numbers.append(ledger.part(part)["seen"].to_pylist())
        return len(numbers) == 2

    stream(
        NUMBERS,
        stages=[Together(tmp_path / "notes", ledger, fails_at=None)],
        ledger=ledger,
        keep=["seen"],
        config=StreamConfig(block_rows=2),
        enough=enough,
    )
    # Each worker works on one block and reads another: of the first four, two are done first.
    assert all(n < 4 * 2 for rows in numbers[:2] for n in rows)


def test_batches_that_tasks_prepare_give_the_same_rows_though_one_dies(tmp_path):
    ledger = Ledger(str(tmp_path / "ledger"), {})
    stages = [Pooled(tmp_path / "notes", Resources(workers=1, batch=3, num_cpus=0.25))]
    config = StreamConfig(block_rows=8)
    streamed = stream(NUMBERS, stages=stages, ledger=ledger, keep=["square"], config=config)
    squares = ledger.table()["square"].to_pylist()
    assert squares == [None if n % 10 == 3 else n * n for n in range(COUNT)]
    assert streamed.counts == {"ok": COUNT - 2, "three": 2}
    assert len(ledger.parts()) == 3
    notes = noted(tmp_path / "notes")
    where = {key: {n.split()[1] for n in notes if n.startswith(key)} for key in ("prep", "comp")}
    assert len(where["comp"]) == 1 and where["comp"].isdisjoint(where["prep"])
    assert sum(n for name, n in notes.items() if name.startswith("prep")) == 9 + 1, "once again"
    assert (tmp_path / "notes" / "dead").exists()


def test_a_bug_stops_the_job_and_the_next_run_does_only_what_was_not_finished(tmp_path):
    ledger = Ledger(str(tmp_path / "ledger"), {})

    def attempt(folder: Path, fails_at: int | None) -> Counter[str]:
        stage = Fragile(folder, ledger, fails_at=fails_at)
        config = StreamConfig(block_rows=4)
        streamed = stream(NUMBERS, stages=[stage], ledger=ledger, keep=["seen"], config=config)
        return streamed.counts

    with pytest.raises(Exception, match="RuntimeError: a bug at 18"):
        attempt(tmp_path / "first", 18)
    assert ledger.state() == "partial"
    done = ledger.done_ids()
    assert 0 < len(done) < COUNT
    assert attempt(tmp_path / "second", None) == {"ok": COUNT}
    assert noted(tmp_path / "second") == Counter(set(NUMBERS["id"].to_pylist()) - done)
    assert ledger.table()["seen"].to_pylist() == list(range(COUNT))
    assert ledger.state() == "complete"
    assert attempt(tmp_path / "third", 0) == {"ok": COUNT}, "nothing was left to do"
    assert not (tmp_path / "third").exists()


def test_the_rows_of_a_ledger_are_a_source(tmp_path):
    source = Ledger(str(tmp_path / "source"), {})
    source.begin()
    for start in range(0, COUNT, 7):
        part = NUMBERS.slice(start, 7)
        nulls = [pa.nulls(part.num_rows, field.type) for field in REJECT]
        for field, column in zip(REJECT, nulls, strict=True):
            part = part.append_column(field, column)
        source.write_part(part)
    source.commit(expected=COUNT, counts={})
    ledger, _ = run(tmp_path, Selection(source), block_rows=2, workers=1, batch=4)
    assert ledger.table().to_pylist() == expected_rows()
    assert len(ledger.parts()) == len(source.parts())


def test_rows_are_left_out_by_id(tmp_path):
    source = Ledger(str(tmp_path / "source"), {})
    source.begin()
    for start in (0, 10):
        source.write_part(NUMBERS.slice(start, 10))
    source.commit(expected=20, counts={})
    rows = Selection(source, pc.field("n") > 2, without=frozenset(["004", "011", "001"]))
    assert source.count(rows.condition) == 15
    ledger, counts = run(tmp_path, rows, block_rows=1, workers=0)
    left = {row["id"] for row in ledger.rows(["id"])}
    assert left == {f"{n:03d}" for n in range(3, 20)} - {"004", "011"}
    assert counts.total() == 15


def test_only_selected_rows_of_a_ledger_are_read_and_a_half_done_one_is_finished(tmp_path):
    source = Ledger(str(tmp_path / "source"), {})
    source.begin()
    for start in range(0, COUNT, 5):
        source.write_part(NUMBERS.slice(start, 5), f"part-{start:03d}.parquet")
    source.commit(expected=COUNT, counts={})
    even = Selection(source, pc.bit_wise_and(pc.field("n"), 1) == 0)
    ledger, _ = run(tmp_path, even, block_rows=64, workers=1, batch=4)
    expected = [row for row in expected_rows() if row["n"] % 2 == 0]
    assert ledger.table().to_pylist() == expected
    assert ledger.parts() == source.parts(), "a part keeps the name of what it was made of"
    lost = ledger.parts()[2]
    (Path(ledger.path) / lost).unlink()
    (Path(ledger.path) / ".manifest.json").unlink()
    calls = noted(tmp_path / "square").total()
    run(tmp_path, even, block_rows=64, workers=1, batch=4)
    assert ledger.table().to_pylist() == expected
    # The two or three even numbers of the lost part; the worker is still there, set up.
    assert noted(tmp_path / "square").total() - calls == 1


def test_passes_of_one_shape_share_workers_and_models_that_both_hold(tmp_path):
    def attempt(name: str, model: str, cores: float = 0.25) -> None:
        stage = Holder(tmp_path / name, model, Resources(workers=1, batch=8, num_cpus=cores))
        ledger = Ledger(str(tmp_path / "ledgers" / name), {})
        stream(NUMBERS, stages=[stage], ledger=ledger, keep=["pid"], config=StreamConfig())

    attempt("first", "a")
    attempt("second", "a")
    attempt("third", "b")
    attempt("fourth", "a")
    attempt("fifth", "a", cores=0.5)
    loads = {name: noted(tmp_path / name) for name in ("first", "second", "third", "fourth")}
    pids = {name.split()[1] for notes in loads.values() for name in notes if "pid" in name}
    assert len(pids) == 1, "one process for all of one shape"
    loaded = {name: sum("load" in note for note in notes) for name, notes in loads.items()}
    assert loaded == {"first": 1, "second": 0, "third": 1, "fourth": 1}
    other = {name.split()[1] for name in noted(tmp_path / "fifth") if "pid" in name}
    assert other.isdisjoint(pids)


def test_a_pass_fills_several_ledgers_and_finishes_the_half_done(tmp_path):
    source = Ledger(str(tmp_path / "source"), {})
    source.begin()
    for start in range(0, COUNT, 5):
        source.write_part(NUMBERS.slice(start, 5), f"part-{start:03d}.parquet")
    source.commit(expected=COUNT, counts={})
    need = Resources(workers=1, batch=4, num_cpus=0.25)
    ledgers = {name: Ledger(str(tmp_path / name), {}) for name in ("squares", "numbers")}

    def attempt() -> None:
        stream_branches(
            Selection(source),
            label="both",
            stages=[],
            branches=[
                Branch([Square(tmp_path / "notes", need)], ledgers["squares"], ["square"]),
                Branch([], ledgers["numbers"], ["n"]),
            ],
            config=StreamConfig(),
        )

    attempt()
    whole = {name: ledger.table().to_pylist() for name, ledger in ledgers.items()}
    assert [row["n"] for row in whole["numbers"]] == list(range(COUNT))
    assert all(row["reject_reason"] is None for row in whole["numbers"])
    assert sum(row["reject_reason"] == "three" for row in whole["squares"]) == 2
    lost = ledgers["numbers"].parts()[1]
    for file in (lost, ".manifest.json"):
        (tmp_path / "numbers" / file).unlink()
    before = noted(tmp_path / "notes").total()
    attempt()
    assert noted(tmp_path / "notes").total() == before, "the squares were all there"
    assert {name: ledger.table().to_pylist() for name, ledger in ledgers.items()} == whole


def test_what_is_not_begun_is_left_out_once_it_is_enough(tmp_path):
    ledger = Ledger(str(tmp_path / "ledger"), {})
    seen: list[str] = []

    def enough(part: str) -> bool:
        seen.append(part)
        return len(seen) >= wanted

    def attempt(folder: Path) -> int:
        stage = Patient(folder, ledger, fails_at=None)
        stream(
            NUMBERS,
            stages=[stage],
            ledger=ledger,
            keep=["seen"],
            config=StreamConfig(block_rows=2),
            enough=enough,
        )
        assert ledger.state() == "complete"
        assert sorted(seen) == ledger.parts(), "all that was written was shown"
        assert noted(folder).total() == ledger.count() - before
        hidden = {path.name for path in Path(ledger.path).glob(".*")}
        assert hidden == {".started.json", ".manifest.json"}, "a mark or half a part was left"
        return ledger.count()

    before, wanted = 0, 2
    first = attempt(tmp_path / "first")
    assert 4 <= first < COUNT
    before, wanted = first, 10**9
    assert attempt(tmp_path / "second") == COUNT


def test_blocks_are_read_while_the_gpu_works_on_another_alone(tmp_path):
    cores, began = 2, time.monotonic()
    need = Resources(batch=64, num_cpus=cores, num_gpus=0.25)
    streamed = stream(
        NUMBERS,
        stages=[
            Reading(tmp_path / "notes"),
            Computing("paint", tmp_path / "notes", need),
            Computing("score", tmp_path / "notes", need),
        ],
        ledger=Ledger(str(tmp_path / "ledger"), {}),
        keep=["n"],
        config=StreamConfig(block_rows=6),
    )
    seconds = time.monotonic() - began
    times: dict[str, list[tuple[float, float]]] = {}
    for name in noted(tmp_path / "notes"):
        stage, *moments = name.split()
        times.setdefault(stage, []).append((float(moments[0]), float(moments[1])))
    assert {stage: len(spans) for stage, spans in times.items()} == dict.fromkeys(times, 4)
    device = sorted(times["paint"] + times["score"])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(device))
    assert any(
        begin < end and start < stop for begin, stop in times["read"] for start, end in device
    )
    # As many are in hand as the worker holds cores, and the one for the GPU: at first all are read.
    reading = [
        sum(start <= begin < end for start, end in times["read"]) for begin, _ in times["read"]
    ]
    assert max(reading) == 1 + max(1, int(cores))
    assert 4.0 <= streamed.busy <= seconds


def test_a_stage_that_runs_out_of_memory_gets_half_the_batch_or_stops_the_job(tmp_path, caplog):
    def attempt(most: int) -> Ledger:
        need = Resources(workers=1, batch=4, num_cpus=0.25, num_gpus=0.25)
        stage = Hungry(tmp_path / f"{most}", need, most=most)
        ledger = Ledger(str(tmp_path / f"ledgers-{most}" / "ledger"), {})
        config = StreamConfig(block_rows=8)
        stream(NUMBERS, stages=[stage], ledger=ledger, keep=["square"], config=config)
        return ledger

    squares = attempt(most=2).table()["square"].to_pylist()
    assert squares == [None if n % 10 == 3 else n * n for n in range(COUNT)]
    told = [record.getMessage() for record in caplog.records]
    half = "ledger: square ran out of memory with resources.batch=4; used 2"
    assert told.count(half) == 1, "said once, not for every block"
    assert max(noted(tmp_path / "2")) == "square-2"
    says = r"^ledger: transform square: memory .* resources\.batch=4, and again with 2; set .* to 1"
    with pytest.raises(NoRoomError, match=says):  # last: it costs the workers
        attempt(most=1)


def test_no_rows_make_a_complete_and_empty_ledger(tmp_path):
    ledger, counts = run(tmp_path, NUMBERS.slice(0, 0), block_rows=4, workers=1, batch=1)
    assert counts == {}
    assert ledger.state() == "complete"
    assert ledger.table(["next", *REJECT.names]).num_rows == 0
    assert ledger.done_ids() == set()


def test_a_stage_that_reads_what_nobody_writes_is_refused(tmp_path):
    stage = Next(tmp_path, Resources())
    ledger = Ledger(str(tmp_path / "ledger"), {})
    with pytest.raises(AssertionError, match=r"stage next reads \{'square'\}"):
        stream(NUMBERS, stages=[stage], ledger=ledger, keep=[], config=StreamConfig())


def test_stages_of_one_worker_share_its_cores_and_add_up_on_its_gpu():
    needs = [
        Resources(workers=0, num_cpus=2),  # has no model
        Resources(workers=3, num_cpus=1, num_gpus=0.1, memory_gib=2),
        Resources(workers=1, num_cpus=1, num_gpus=0.6, memory_gib=4),
    ]
    shared = shared_worker(needs)
    assert (shared.workers, shared.num_cpus, shared.memory_gib) == (3, 1, 6)
    assert shared.num_gpus == 0.7
    assert shared_worker([Resources(num_gpus=1)] * 2).num_gpus == 1, "there is but one"

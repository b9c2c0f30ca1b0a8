"""Batches through a transform: one shape, half of it without memory, the oldest block first."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
import torch

from raypref.core.config import Resources
from raypref.core.exhausted import NoRoomError
from raypref.core.rows import Row, reject
from raypref.engine.batches import AHEAD, Device, in_batches


class Double:
    """Doubles `n`, rejects 5; its model has memory for `most` rows."""

    name = "double"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("double", pa.int64())])

    def __init__(self, *, batch: int, most: int) -> None:
        self.resources = Resources(batch=batch)
        self.most = most
        self.shapes: list[int] = []

    def setup(self) -> None:
        """Nothing to load."""

    def prepare(self, rows: list[Row]) -> list[int]:
        return [row["n"] for row in rows]

    def compute(self, batch: list[int]) -> list[int]:
        self.shapes.append(len(batch))
        if len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return [2 * n for n in batch]

    def finish(self, rows: list[Row], out: list[int]) -> None:
        for row, double in zip(rows, out, strict=False):
            row["double"] = double
            if row["n"] == 5:
                reject(row, self.name, "five", "is 5")


def counted(count: int) -> list[Row]:
    return [{"n": n} for n in range(count)]


@pytest.fixture(params=[0, 3], ids=["alone", "helped"])
def helpers(request):
    """No helpers, or three."""
    if not request.param:
        yield None
        return
    with ThreadPoolExecutor(request.param) as threads:
        yield threads


def test_the_last_batch_has_the_shape_of_the_others(helpers):
    model, rows = Double(batch=5, most=5), counted(13)
    done = in_batches(model, rows, helpers=helpers)
    assert model.shapes == [5, 5, 5]
    assert [row["double"] for row in rows] == list(range(0, 26, 2))
    assert [row["n"] for row in rows if "reject_reason" in row] == [5]
    assert not done.note
    assert in_batches(model, []).busy == 0 and len(model.shapes) == 3


class Sized(Double):
    """Its batches hold rows of one `size`; rows without one fit into any."""

    def prepare(self, rows: list[Row]) -> list[int]:
        assert len({row["size"] for row in rows} - {None}) <= 1
        return super().prepare(rows)

    def shape_of(self, row: Row) -> tuple[int, int] | None:
        return row["size"]


def test_rows_of_several_sizes_come_in_batches_of_one_size(helpers):
    wide, tall = (2, 1), (1, 2)
    sizes = [wide, tall, wide, None, tall, wide, None, wide]
    rows = [{"n": n, "size": size} for n, size in enumerate(sizes)]
    model = Sized(batch=3, most=3)
    in_batches(model, rows, helpers=helpers)
    assert model.shapes == [3] * 4, "four wide ones, two tall ones and two of any"
    assert [row["double"] for row in rows] == list(range(0, 16, 2))
    short = Sized(batch=4, most=2)
    again = [{"n": n, "size": size} for n, size in enumerate(sizes)]
    assert "used 2" in in_batches(short, again, helpers=helpers).note
    assert [row["double"] for row in again] == list(range(0, 16, 2))
    alike = Sized(batch=3, most=3)
    in_batches(alike, [{"n": n, "size": wide if n % 2 else None} for n in range(7)])
    assert alike.shapes == [3] * 3, "as they come where there is one size"


def test_half_the_batch_when_memory_runs_out(helpers):
    model, rows = Double(batch=5, most=3), counted(8)
    done = in_batches(model, rows, helpers=helpers)
    assert model.shapes == [5, 2, 2, 2, 2]
    assert [row["double"] for row in rows] == list(range(0, 16, 2))
    assert done.note == "double ran out of memory with resources.batch=5; used 2\n"
    assert model.resources.batch == 5, "the next block is tried whole"


def test_memory_that_runs_out_later_costs_no_finished_row(helpers):
    model, rows = Double(batch=4, most=4), counted(12)
    finished: list[int] = []
    finish, compute = model.finish, model.compute

    def compute_or_fail(batch: list[int]) -> list[int]:
        if len(batch) == 4 and batch[0] == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(batch)

    def noted(rows: list[Row], out: list[int]) -> None:
        finished.extend(row["n"] for row in rows)
        finish(rows, out)

    model.compute, model.finish = compute_or_fail, noted  # type: ignore[method-assign]
    assert in_batches(model, rows, helpers=helpers).note
    assert sorted(finished) == list(range(12)), "each once"
    assert [row["double"] for row in rows] == list(range(0, 24, 2))


@pytest.mark.parametrize(
    ("batch", "most", "calls", "says"),
    [
        (8, 2, 2, "resources.batch=8, and again with 4; set resources.batch .* to 2 "),
        (3, 0, 2, "resources.batch=3, and again with 1; one row is too much"),
        (1, 0, 1, "resources.batch=1; one row is too much"),
    ],
)
def test_half_the_batch_was_too_much_as_well(batch, most, calls, says, helpers):
    model = Double(batch=batch, most=most)
    with pytest.raises(NoRoomError, match=f"^transform double: memory ran out with {says}"):
        in_batches(model, counted(9), helpers=helpers)
    assert len(model.shapes) == calls


@pytest.mark.parametrize("phase", ["prepare", "compute"])
def test_memory_of_the_cpu_counts_and_other_errors_do_not(phase, helpers):
    def large(_: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    model = Double(batch=2, most=2)
    setattr(model, phase, large)
    with pytest.raises(NoRoomError, match="memory ran out"):
        in_batches(model, counted(1), helpers=helpers)
    for failing in (phase, "finish"):
        model = Double(batch=2, most=2)
        setattr(model, failing, broken)
        with pytest.raises(RuntimeError, match=r"^a bug$"):
            in_batches(model, counted(1), helpers=helpers)


def test_batches_are_prepared_and_finished_while_one_is_computed():
    class Watched(Double):
        """Computes the first batch until others are prepared, the second until one is finished."""

        def __init__(self) -> None:
            super().__init__(batch=1, most=1)
            self.prepared = threading.Semaphore(0)
            self.finished = threading.Event()

        def prepare(self, rows: list[Row]) -> list[int]:
            self.prepared.release()
            return super().prepare(rows)

        def compute(self, batch: list[int]) -> list[int]:
            if batch == [0]:
                assert all(self.prepared.acquire(timeout=60) for _ in range(1 + AHEAD))
                time.sleep(0.1)
                assert not self.prepared.acquire(blocking=False), "more than said is in memory"
            if batch == [1]:
                assert self.finished.wait(60)
            return super().compute(batch)

        def finish(self, rows: list[Row], out: list[int]) -> None:
            super().finish(rows, out)
            self.finished.set()

    rows = counted(8)
    with ThreadPoolExecutor(2) as helpers:
        done = in_batches(Watched(), rows, helpers=helpers)
    assert [row["double"] for row in rows] == list(range(0, 16, 2))
    assert done.busy >= 0.1


def test_one_thread_computes_and_the_oldest_block_is_next():
    device, order = Device(), list[int]()
    waiting = [threading.Event() for _ in range(5)]

    def compute(block: int) -> None:
        waiting[block].set()
        with device.held(block):
            order.append(block)
            time.sleep(0.01)
            order.append(block)

    threads = [threading.Thread(target=compute, args=[block]) for block in (3, 1, 4, 2)]
    with device.held(0):
        for thread in threads:
            thread.start()
        assert all(event.wait(60) for event in waiting[1:])
        time.sleep(0.1)  # they wait by now
        assert not order
    for thread in threads:
        thread.join()
    assert order == [1, 1, 2, 2, 3, 3, 4, 4]


def test_what_fails_leaves_the_device_to_others():
    device, model = Device(), Double(batch=1, most=0)
    with pytest.raises(NoRoomError):
        in_batches(model, counted(1), device=partial(device.held, 0))
    model.most = 1
    assert in_batches(model, counted(1), device=partial(device.held, 1)).busy > 0


class Tasks:
    """Prepares in threads, and knows how many batches are under way."""

    most = 4

    def __init__(self, model: Double, threads: ThreadPoolExecutor) -> None:
        self.model = model
        self.threads = threads
        self.sent = self.under_way = 0
        self.two = threading.Event()  # batches have been computed

    def more(self) -> bool:
        return self.under_way < self.most

    def taken(self, count: int) -> None:
        self.under_way -= count

    def submit(self, rows: list[Row]) -> Any:
        self.sent += 1
        self.under_way += 1
        assert self.under_way <= self.most
        return self.threads.submit(self._prepare, self.sent, rows)

    def _prepare(self, number: int, rows: list[Row]) -> list[int]:
        if number == 1:  # is late: others go first
            assert self.two.wait(10)
        if len(self.model.shapes) >= 2:
            self.two.set()
        return self.model.prepare(rows)


@pytest.mark.parametrize("whole", [True, False], ids=["", "half the batch"])
def test_readers_prepare_a_bounded_number_of_batches_and_wait_for_no_late_one(helpers, whole):
    model, rows = Double(batch=2, most=2 if whole else 1), counted(21)
    with ThreadPoolExecutor(4) as threads:
        readers = Tasks(model, threads)
        in_batches(model, rows, helpers=helpers, readers=readers)
    assert readers.under_way == 0
    assert model.shapes.count(2 if whole else 1) == (11 if whole else 21)
    assert [row["double"] for row in rows] == list(range(0, 42, 2))

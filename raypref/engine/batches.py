"""Batches of rows through one transform: prepared ahead, computed alone, finished behind.

prepare   batch 3 | batch 4 | batch 5      helper threads
compute   batch 2 | batch 3 | batch 4      one thread of the process at a time
finish    batch 1 | batch 2 | batch 3      helper threads
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from raypref.core.rows import ModelTransform, Row, ShapedTransform, Transform, padded
from raypref.engine.memory import out_of_memory, too_much

AHEAD = 2  # batches of a block that are prepared while another is computed

R = TypeVar("R")
Hold = Callable[[], AbstractContextManager[None]]  # of a device


class Device:
    """The device of a process: one thread computes at a time.

    Of the threads that wait, the one with the oldest block is next. So blocks end one after
    another, and the device has work while one is written and the next is read; taken in turns,
    they would all be read at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[int] = []  # a heap
        self._held = False

    @contextmanager
    def held(self, block: int) -> Iterator[None]:
        """Wait for the device, and hold it.

        Args:
            block: its number; smaller ones are older. No two threads have the same.
        """
        with self._changed:
            heapq.heappush(self._waiting, block)
            self._changed.wait_for(lambda: not self._held and self._waiting[0] == block)
            heapq.heappop(self._waiting)
            self._held = True
        try:
            yield
        finally:
            with self._changed:
                self._held = False
                self._changed.notify_all()


class Preparation(Protocol):
    """What a model reads of rows, made without the model: in any process. Cheap to pickle."""

    def setup(self) -> None:
        """Load what it needs, once per process."""

    def __call__(self, rows: list[Row]) -> Any:
        """As `prepare` of the transform that it belongs to."""


@runtime_checkable
class PooledTransform(ModelTransform, Protocol):
    """A model whose batches tasks on any node may prepare. Its `prepare` does the same here."""

    preparation: Preparation


class Preparers(Protocol):
    """Who prepares the batches of a block for a `PooledTransform`."""

    def more(self) -> bool:
        """Whether it may send another batch."""

    def submit(self, rows: list[Row]) -> Future[Any]:
        """Have a batch prepared; it is under way until it is `taken`."""

    def taken(self, count: int) -> None:
        """So many batches are computed, or not wanted any more."""


class Done(NamedTuple):
    """What it took to send rows through a transform."""

    busy: float  # seconds in `compute`
    note: str  # a line to show people; empty when memory sufficed


def in_batches(
    transform: Transform,
    rows: list[Row],
    *,
    device: Hold = nullcontext,
    helpers: Executor | None = None,
    readers: Preparers | None = None,
) -> Done:
    """Send rows through a transform, `resources.batch` at a time.

    A model gets batches of one shape: the last batch is padded, and with images of several sizes
    the last batch of each size (`ShapedTransform`). When it runs out of memory, the rows not done
    are done with half the batch, once. Another batch changes the order of a model's sums: those
    rows' results then move by rounding only.

    Args:
        transform: set up.
        rows: live ones; filled in place.
        device: held while the model computes.
        helpers: threads that prepare and finish meanwhile; None does it here, one after another.
        readers: prepare in place of the helpers; a batch is computed as soon as it is there.

    Raises:
        NoRoomError: half the batch was too much as well, or the batch is 1.
    """
    usual = size = transform.resources.batch
    if not isinstance(transform, ModelTransform):
        for start in range(0, len(rows), size):
            transform(rows[start : start + size])
        return Done(0.0, "")
    busy, left, done = 0.0, rows, set[int]()
    finishing: list[Future[None]] = []
    while left:
        try:
            with closing(_prepared(transform, left, size, helpers, readers)) as batches:
                for live, batch in batches:
                    with device():
                        began = time.monotonic()
                        out = transform.compute(batch)
                        busy += time.monotonic() - began
                    done.update(map(id, live))
                    finishing.append(_submit(helpers, transform.finish, live, out))
            break
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if size == 1 or size < usual:
                raise too_much(transform.name, usual, size) from error
        # Only here is the exception gone, and with it the tensors that its frames held.
        size //= 2
        left = [row for row in rows if id(row) not in done]
    for future in finishing:
        future.result()
    note = f"{transform.name} ran out of memory with resources.batch={usual}; used {size}\n"
    return Done(busy, "" if size == usual else note)


def _prepared(
    transform: ModelTransform,
    rows: list[Row],
    size: int,
    helpers: Executor | None,
    readers: Preparers | None,
) -> Generator[tuple[list[Row], Any]]:
    """The rows of each batch and what `prepare` made of them; further ones are under way."""
    waiting: deque[tuple[list[Row], Future[Any]]] = deque()
    batches = iter(_cut(transform, rows, size))
    ahead = AHEAD if helpers else 0
    prepare = readers.submit if readers else partial(_submit, helpers, transform.prepare)
    try:
        while True:
            while readers.more() if readers else len(waiting) <= ahead:
                if (live := next(batches, None)) is None:
                    break
                waiting.append((live, prepare(padded(live, size))))
            if not waiting:
                return
            if readers:  # of many machines one is late at times
                ready, _ = wait((each for _, each in waiting), return_when=FIRST_COMPLETED)
                waiting.rotate(-next(i for i, (_, each) in enumerate(waiting) if each in ready))
            live, future = waiting[0]
            yield live, future.result()
            waiting.popleft()
            if readers:
                readers.taken(1)
    finally:
        for _, future in waiting:
            future.cancel()
        if readers:
            readers.taken(len(waiting))


def _cut(transform: ModelTransform, rows: list[Row], size: int) -> list[list[Row]]:
    """The rows in batches, each of images of one size where the transform wants that."""
    groups = [rows]
    if isinstance(transform, ShapedTransform):
        by_shape: dict[Any, list[Row]] = {}
        for row in rows:
            by_shape.setdefault(transform.shape_of(row), []).append(row)
        anywhere = by_shape.pop(None, [])
        if len(by_shape) > 1:
            groups = [*by_shape.values()]
            groups[-1] += anywhere
    return [own[start : start + size] for own in groups for start in range(0, len(own), size)]


def _submit(helpers: Executor | None, work: Callable[..., R], *args: Any) -> Future[R]:
    """Have it done by a helper, or here and now."""
    if helpers is not None:
        return helpers.submit(work, *args)
    future: Future[R] = Future()
    future.set_result(work(*args))
    return future

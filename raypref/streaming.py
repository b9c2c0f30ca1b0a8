"""Stages onto Ray Data: the only file that does so.

Rows flow as Arrow blocks into one fixed pool of actors (or stateless tasks). A worker takes a
block through all stages and writes it as a ledger part: a kill costs at most the block in each
worker's hands, what a stage makes never crosses the object store, and only counts come back. A
worker with a GPU takes more blocks at a time, one a core that it holds and one for the GPU: some
are read or written while the GPU works on another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from raypref.cluster import warn_if_short
from raypref.config import Resources
from raypref.ledger import Ledger, Where, filesystem, join, read_bytes, write_bytes
from raypref.progress import Progress
from raypref.room import NoRoomError, in_batches, no_room
from raypref.rows import REJECT, Row, Stage, is_rejected
from raypref.stream_config import StreamConfig

log = logging.getLogger(__name__)

_DEVICE = threading.Lock()  # of this process: one block at a time
STOP = ".stop"  # in a ledger: what is not begun is not wanted any more


class Streamed(NamedTuple):
    """What became of the rows, and what it took."""

    counts: Counter[str]  # rows by reason; "ok" for those not rejected
    busy: float  # seconds that a worker spent in its device stages, mean over workers


@dataclass(frozen=True)
class Selection:
    """Rows of a complete ledger, read part by part in the workers."""

    ledger: Ledger
    where: Where = None  # only rows that fulfil this condition
    without: frozenset[str] = frozenset()  # ids left out

    @property
    def condition(self) -> Where:
        """Both as one, for a scan of the whole ledger."""
        if not self.without:
            return self.where
        others = ~pc.field("id").isin(pa.array(sorted(self.without), pa.string()))
        return others if self.where is None else self.where & others

    def part(self, name: str) -> pa.Table:
        """The selected rows of one part."""
        table = self.ledger.part(name, where=self.where)
        if not self.without:
            return table
        # An expression with all these ids would be prepared anew for every part.
        return table.filter(pa.array(id_ not in self.without for id_ in table["id"].to_pylist()))


def stream(
    rows: pa.Table | Selection,
    *,
    stages: Sequence[Stage],
    ledger: Ledger,
    keep: Sequence[str],
    config: StreamConfig,
    enough: Callable[[str], bool] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Streamed:
    """Send rows through the stages into a ledger and commit it.

    What the ledger already holds is not done again, so a killed run continues.

    Args:
        rows: what to process; column `id` is required and unique. A table lies in the driver's
            memory and is cut into blocks; of a selection every part is a block.
        stages: in order; each adds columns or rejects rows.
        ledger: where finished rows go. Its `begin` is called here.
        keep: columns of the finished rows, besides `id` and the reject columns.
        config: block size and progress.
        enough: is asked with the name of each part that is finished now, in any order; once it
            says True the rest is not begun, and the ledger is complete as it is.
        runtime_env: Ray's description of an environment of the workers' own, such as `{"pip": ...}`
            for a model that needs other versions of libraries.

    Returns:
        How all rows ended, and how busy the workers were with those done now.

    Raises:
        NoRoomError: a disk or a device's memory is full.
    """
    ledger.begin()
    _forget_stop(ledger)
    read: _Reader
    if isinstance(rows, pa.Table):
        done = ledger.done_ids()
        new = [id_ not in done for id_ in rows["id"].to_pylist()]
        todo = rows.filter(pa.array(new, pa.bool_()))
        size, schema, before, read = config.block_rows, rows.schema, len(done), _as_it_is
        total = before + todo.num_rows
        blocks = [todo.slice(start, size) for start in range(0, todo.num_rows, size)]
    else:  # a worker reads the part that a block names: no pixel passes through the driver
        there = set(ledger.parts())
        names = [name for name in rows.ledger.parts() if name not in there]
        size, blocks = 1, [pa.table({"part": [name]}) for name in names]
        schema, read = rows.ledger.schema(), _ReadPart(rows)
        total, before = rows.ledger.count(rows.condition), ledger.count()
    label = ledger.path.rstrip("/").rsplit("/", 1)[-1]
    if before:
        log.info("%s: %d of %d rows were done before", label, before, total)
    schemas = _schemas(schema, stages)
    busy, stopped = 0.0, False
    if blocks:
        need = shared_worker([stage.resources for stage in stages])
        work = (read, stages, schemas[-1], need, ledger, _columns(keep))
        every = config.progress_seconds
        progress = Progress(label, total=total, done=before, unit="rows", every=every)
        busy, stopped = _run(blocks, size, work, need, progress, enough, runtime_env)
        _forget_stop(ledger)
    elif not ledger.parts():  # an empty part tells readers the columns
        ledger.write_part(schemas[-1].empty_table().select(_columns(keep)))
    if isinstance(rows, pa.Table):
        ledger.drop_repeated_rows()
    counts = ledger.reasons()
    ledger.commit(expected=counts.total() if stopped else total, counts=counts)
    return Streamed(counts, busy)


def _forget_stop(ledger: Ledger) -> None:
    fs, path = filesystem(join(ledger.path, STOP))
    if fs.get_file_info(path).is_file:
        fs.delete_file(path)


# From a block to its rows and the name of the part that they will be; None: their ids name it.
_Reader = Callable[[pa.Table], tuple[pa.Table, str | None]]


def _as_it_is(block: pa.Table) -> tuple[pa.Table, None]:
    return block, None


class _ReadPart:
    """The selected rows of the part that a block names, whose name goes on."""

    def __init__(self, rows: Selection) -> None:
        self.rows = rows

    def __call__(self, block: pa.Table) -> tuple[pa.Table, str]:
        name = block["part"][0].as_py()
        return self.rows.part(name), name


def _run(
    blocks: list[pa.Table],
    size: int,
    work: tuple[Any, ...],
    need: Resources,
    progress: Progress,
    enough: Callable[[str], bool] | None,
    runtime_env: Mapping[str, Any] | None,
) -> tuple[float, bool]:
    """Returns the seconds a worker was busy, mean over workers, and whether it was enough."""
    warn_if_short(progress.label, need, workers=1)  # a pool starts with what is there
    worker: type[_Worker] | Callable[[pa.Table], pa.Table]
    worker = _Worker if need.workers else _Worker(*work)
    dataset = ray.data.from_arrow(blocks).map_batches(
        worker,
        fn_constructor_args=work if need.workers else None,
        compute=_pool(need, ranked=enough is not None) if need.workers else TaskPoolStrategy(),
        batch_size=size,  # a block; that it is one must be said in figures when GPUs are asked for
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=need.num_cpus,
        num_gpus=need.num_gpus or None,
        memory=int(need.memory_gib * 2**30) or None,
        runtime_env=dict(runtime_env) if runtime_env else None,
    )
    rejected, busy, stopped, note = 0, 0.0, False, "0 rejected"
    told: set[str] = set()
    began = time.monotonic()
    for part in dataset.iter_rows():
        if part["no_room"]:
            raise NoRoomError(f"{progress.label}: {part['no_room']}")
        for line in set(part["notes"].splitlines()) - told:
            log.warning("%s: %s", progress.label, line)
            told.add(line)
        rejected += int(part["rejected"])
        note = f"{rejected} rejected"
        if need.workers:  # of tasks nobody knows how many ran at once
            busy += part["busy"] / need.workers
            note += f", workers busy {busy / (time.monotonic() - began):.0%}"
        progress.add(int(part["rows"]), note=note)
        if part["part"] and enough is not None and enough(part["part"]) and not stopped:
            # Not by leaving the loop: what is in the workers' hands would be written later on.
            stopped = True
            write_bytes(join(work[4].path, STOP), b"enough")
    progress.finish(note=note)
    return busy, stopped


def _pool(need: Resources, *, ranked: bool) -> ActorPoolStrategy:
    # Of ranked blocks the fewest: those begun after the last one needed are made for nothing.
    readers = 1 if ranked else max(1, int(need.num_cpus))
    at_once = 1 + readers if need.num_gpus else 1
    return ActorPoolStrategy(
        size=need.workers,
        max_concurrent_calls_per_actor=at_once,
        # Ray would queue as many more: the best blocks in the worker that happens to start first.
        max_tasks_in_flight_per_actor=at_once if ranked else None,
        enable_true_multi_threading=True,  # our own lock guards the models
    )


def shared_worker(needs: Sequence[Resources]) -> Resources:
    """What a worker needs that runs several stages one after another.

    Their models stay loaded side by side, so shares of its one GPU and memory add up; cores serve
    one stage at a time, so the largest demand counts. The stage that asks for most workers
    decides how many there are.
    """
    return Resources(
        workers=max(need.workers for need in needs),
        num_cpus=max(need.num_cpus for need in needs),
        num_gpus=min(1, round(sum(need.num_gpus for need in needs), 4)),
        memory_gib=sum(need.memory_gib for need in needs),
    )


def _columns(keep: Sequence[str]) -> list[str]:
    """Columns of finished rows."""
    return list(dict.fromkeys(["id", *keep, *REJECT.names]))


def _schemas(schema: pa.Schema, stages: Sequence[Stage]) -> list[pa.Schema]:
    """The columns before the first stage and after each."""
    schemas = [_with(schema, REJECT)]
    for stage in stages:
        missing = set(stage.reads) - set(schemas[-1].names)
        assert not missing, f"stage {stage.name} reads {missing}, which no stage before it writes"
        schemas.append(_with(schemas[-1], stage.writes))
    return schemas


def _with(schema: pa.Schema, more: pa.Schema) -> pa.Schema:
    return pa.schema([*schema, *(field for field in more if field.name not in schema.names)])


# What a worker tells the driver of a block of which it wrote nothing.
_NOTHING = {"part": "", "rows": 0, "rejected": 0, "busy": 0.0, "notes": "", "no_room": ""}


def _answer(**told: Any) -> pa.Table:
    return pa.Table.from_pylist([_NOTHING | told])


class _Worker:
    """Takes Arrow blocks through the stages, whole batches of live rows, and writes them."""

    def __init__(
        self,
        read: _Reader,
        stages: Sequence[Stage],
        schema: pa.Schema,
        need: Resources,
        ledger: Ledger,
        columns: list[str],
    ) -> None:
        self.read = read
        self.stages = stages
        self.schema = schema
        self.need = need
        self.ledger = ledger
        self.columns = columns
        self.ready = False

    def __call__(self, block: pa.Table) -> pa.Table:
        """Returns only what the driver counts, or why there is no room: Ray need not try again."""
        try:
            return self._finish(block)
        except Exception as error:
            if not (line := no_room(error)):
                raise
            return _answer(no_room=line)

    def _finish(self, block: pa.Table) -> pa.Table:
        with nullcontext() if self.ready else _DEVICE:
            self._set_up()
        if self._stopped():
            return _answer()
        table, name = self.read(block)
        rows: list[Row] = table.to_pylist()
        before, device, after = _around_models(self.stages)
        notes = _apply(before, rows)
        with _DEVICE:
            if self._stopped():  # while it waited
                return _answer()
            began = time.monotonic()
            notes += _apply(device, rows)
            busy = time.monotonic() - began
        notes += _apply(after, rows)
        done = pa.Table.from_pylist(rows, schema=self.schema).select(self.columns)
        name = self.ledger.write_part(done, name)
        rejected = sum(map(is_rejected, rows))
        return _answer(part=name, rows=len(rows), rejected=rejected, busy=busy, notes=notes)

    def _stopped(self) -> bool:
        return read_bytes(join(self.ledger.path, STOP)) is not None

    def _set_up(self) -> None:
        if self.ready:
            return
        if self.need.workers:  # tasks hold no models, and are quicker to start without torch
            import torch

            # A worker that holds a fraction of a core must not start a thread per core.
            torch.set_num_threads(max(1, int(self.need.num_cpus)))
        for stage in self.stages:
            stage.setup()
        self.ready = True


def _around_models(stages: Sequence[Stage]) -> tuple[Sequence[Stage], ...]:
    """The stages before the first that holds a model, up to the last that does, and after it."""
    models = [number for number, stage in enumerate(stages) if stage.resources.workers]
    first, last = (models[0], models[-1] + 1) if models else (0, 0)
    return stages[:first], stages[first:last], stages[last:]


def _apply(stages: Sequence[Stage], rows: list[Row]) -> str:
    """Returns lines to tell people."""
    return "".join(
        in_batches(stage, [row for row in rows if not is_rejected(row)]) for stage in stages
    )

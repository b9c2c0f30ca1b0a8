"""What one worker does with a block of rows: read, transformed, into the ledgers. No Ray.

A worker with a GPU has several blocks in hand, each on a thread of its own. Its models compute one
batch at a time (`batches.py`); reading, preparing, finishing and writing go on meanwhile.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raypref.core.config import InputError, Resources
from raypref.core.exhausted import exhausted
from raypref.core.imports import quick_imports
from raypref.core.ledger import Ledger, join, read_bytes, remove_file
from raypref.core.rows import REJECT, ModelTransform, Row, Transform, is_rejected
from raypref.engine.batches import Device, Done, PooledTransform, Preparers, in_batches
from raypref.engine.cluster import connected
from raypref.images.decode import as_png

if TYPE_CHECKING:
    from raypref.engine.readers import Readers

_DEVICE = Device()  # of this process
_SETUP = threading.Lock()
_blocks = itertools.count()  # of this process, in the order in which they are begun
STOP = ".stop"  # in a ledger: blocks that are not begun are not wanted any more

# From a block to its rows and the name of the part that they will be; None: their ids name it.
Reader = Callable[[pa.Table], tuple[pa.Table, str | None]]

# Reply for a block of which nothing was written.
_NOTHING = {"part": "", "rows": 0, "rejected": 0, "busy": 0.0, "notes": ""} | {
    "no_room": "",
    "refused": "",
}


@dataclass(frozen=True)
class Sound:
    """A second ledger of a branch, for the rows that were not rejected alone.

    So images go straight into a ledger that holds nothing else, and are stored once. Whoever
    streams begins and commits it.
    """

    ledger: Ledger
    schema: pa.Schema  # of its rows; `id` is among the columns

    def write(self, rows: Sequence[Row], name: str) -> None:
        """Write the part of a block, before the branch's own: that one says the block is done."""
        live = _as_stored([row for row in rows if not is_rejected(row)], self.schema.names)
        if live:
            self.ledger.write_part(pa.Table.from_pylist(live, schema=self.schema), name)
        else:  # written before a kill, when these rows could still be used
            remove_file(join(self.ledger.path, name))


@dataclass(frozen=True)
class Branch:
    """Rows on their way into one ledger.

    A row that one branch rejects goes its way in the others.
    """

    stages: Sequence[Transform]  # in order; each adds columns or rejects rows
    ledger: Ledger
    keep: Sequence[str]  # columns of the finished rows, besides `id` and the reject columns
    sound: Sound | None = None  # only for rows that are read as named parts of another ledger

    def columns(self) -> list[str]:
        """Columns of the finished rows."""
        return list(dict.fromkeys(["id", *self.keep, *REJECT.names]))


class Worker:
    """Takes Arrow blocks through the transforms, whole batches of live rows, and writes them.

    Args:
        read: from a block to its rows.
        stages: what every row goes through first.
        branches: where it goes then; several of them see equal rows.
        schema: columns of the rows as they are read.
        need: what this worker holds.
    """

    def __init__(
        self,
        read: Reader,
        stages: Sequence[Transform],
        branches: Sequence[Branch],
        schema: pa.Schema,
        need: Resources,
    ) -> None:
        self.read = read
        self.stages = stages
        self.branches = branches
        self.need = need
        self.ready = False
        self._readers: dict[int, Readers] = {}  # by transform
        before = _schema_after(_with(schema, REJECT), stages)
        self.schemas = [
            pa.schema(map(_schema_after(before, branch.stages).field, branch.columns()))
            for branch in branches
        ]

    @property
    def all_stages(self) -> list[Transform]:
        """Those of all rows, then those of each branch."""
        return [*self.stages, *(stage for branch in self.branches for stage in branch.stages)]

    def empty(self) -> list[pa.Table]:
        """A finished table without rows per branch: it tells readers the columns."""
        return [schema.empty_table() for schema in self.schemas]

    def __call__(self, block: pa.Table) -> pa.Table:
        """Returns only what the driver counts, or why it must end: Ray need not try again."""
        try:
            return self._finish(block)
        except InputError as error:
            return _answer(refused=str(error))
        except Exception as error:
            if not (line := exhausted(error)):
                raise
            return _answer(no_room=line)

    def set_up(self) -> None:
        """Load what the transforms need, once."""
        if self.ready:
            return
        with quick_imports():
            for stage in self.all_stages:
                stage.setup()
        # A worker that holds a fraction of a core must not start a thread per core.
        if self.need.workers and (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(max(1, int(self.need.num_cpus)))
        self.ready = True

    def take_over(self, other: Worker) -> None:
        """Use the transforms of another worker, which are equal to this one's and set up."""
        self.stages, self.ready = other.stages, other.ready
        self.branches = [
            replace(branch, stages=theirs.stages)
            for branch, theirs in zip(self.branches, other.branches, strict=True)
        ]

    def _finish(self, block: pa.Table) -> pa.Table:
        with _SETUP:
            self.set_up()
        if self._stopped():
            return _answer()
        number = next(_blocks)
        table, name = self.read(block)
        rows: list[Row] = table.to_pylist()
        lacking = [
            (branch, schema)
            for branch, schema in zip(self.branches, self.schemas, strict=True)
            if name is None or not branch.ledger.has_part(name)  # else written before a kill
        ]
        try:
            done = self._through(self.stages, rows, number)
            copies = _copies(rows, len(lacking))
            for (branch, _), own in zip(lacking, copies, strict=True):
                done += self._through(branch.stages, own, number)
        except _NotWanted:
            return _answer()
        for (branch, schema), own in zip(lacking, copies, strict=True):
            if branch.sound is not None:
                assert name is not None, "rows of a selection come as named parts"
                branch.sound.write(own, name)
            finished = pa.Table.from_pylist(_as_stored(own, schema.names), schema=schema)
            name = branch.ledger.write_part(finished, name)
        return _answer(
            part=name,
            rows=len(rows),
            rejected=sum(map(any, zip(*(map(is_rejected, own) for own in copies), strict=True))),
            busy=sum(each.busy for each in done),
            notes="".join(each.note for each in done),
        )

    def _through(self, transforms: Sequence[Transform], rows: list[Row], block: int) -> list[Done]:
        """Fill the rows in place; raises _NotWanted once the driver wants no more blocks."""
        # Without a GPU the model computes on the cores that would help.
        helpers = _helpers(max(1, int(self.need.num_cpus))) if self.need.num_gpus else None
        device = partial(_DEVICE.held, block)
        done = []
        for transform in transforms:
            if isinstance(transform, ModelTransform) and self._stopped():
                raise _NotWanted
            live = [row for row in rows if not is_rejected(row)]
            readers = self._readers_of(transform, block)
            done.append(
                in_batches(transform, live, device=device, helpers=helpers, readers=readers)
            )
        return done

    def _readers_of(self, transform: Transform, block: int) -> Preparers | None:
        """Who prepares a transform's batches on other nodes; None: this process does."""
        if not self.need.workers or not isinstance(transform, PooledTransform) or not connected():
            return None  # a task would hold the core that the tasks it waits for may need
        from raypref.engine.readers import Readers

        with _SETUP:
            if id(transform) not in self._readers:
                self._readers[id(transform)] = Readers(transform, self.need)
            return self._readers[id(transform)].of_block(block)

    def _stopped(self) -> bool:
        return read_bytes(join(self.branches[0].ledger.path, STOP)) is not None


class _NotWanted(Exception):  # noqa: N818  (no error)
    """The driver wants no more blocks."""


@cache
def _helpers(count: int) -> Executor:
    """Threads of this process, which prepare and finish batches."""
    return ThreadPoolExecutor(count, thread_name_prefix="helper")


def shared_worker(needs: Sequence[Resources]) -> Resources:
    """What a worker needs that runs several transforms one after another.

    Their models stay loaded side by side, so shares of its one GPU and memory add up; cores serve
    one model at a time, so the largest demand of a model counts: transforms without one make do
    with that. The transform that asks for most workers decides how many there are.
    """
    return Resources(
        workers=max(need.workers for need in needs),
        num_cpus=max(need.num_cpus for need in [n for n in needs if n.workers] or needs),
        num_gpus=min(1, round(sum(need.num_gpus for need in needs), 4)),
        memory_gib=sum(need.memory_gib for need in needs),
    )


def needs_of(stages: Sequence[Transform]) -> list[Resources]:
    """What each model among the transforms needs: those of equal settings share one."""
    models: list[Any] = []
    needs = []
    for stage in stages:
        model = getattr(stage, "config", stage)
        if model not in models:
            models.append(model)
            needs.append(stage.resources)
    return needs


def _schema_after(schema: pa.Schema, stages: Sequence[Transform]) -> pa.Schema:
    """The columns after the transforms."""
    for stage in stages:
        missing = set(stage.reads) - set(schema.names)
        assert not missing, f"stage {stage.name} reads {missing}, which no stage before it writes"
        schema = _with(schema, stage.writes)
    return schema


def _with(schema: pa.Schema, more: pa.Schema) -> pa.Schema:
    """Both; a column that is written again has the later type."""
    again = {field.name: field for field in more}
    kept = [again.pop(field.name, field) for field in schema]
    return pa.schema([*kept, *again.values()])


def _copies(rows: list[Row], count: int) -> list[list[Row]]:
    """The rows of each branch; the images in them are shared."""
    return [rows] if count == 1 else [[dict(row) for row in rows] for _ in range(count)]


def _as_stored(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The columns that a ledger keeps, images as PNG: encoded here and nowhere before."""
    return [{name: as_png(row.get(name)) for name in names} for row in rows]


def _answer(**told: Any) -> pa.Table:
    return pa.Table.from_pylist([_NOTHING | told])

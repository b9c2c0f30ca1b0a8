"""Rows through transforms into ledgers: what is left to do, who does it, what came of it.

Rows flow as Arrow blocks into workers (`pool.py`, on Ray Data). A worker takes a block through all
transforms and writes it as a ledger part (`worker.py`): a kill costs at most the blocks in each
worker's hands, what a transform makes never crosses the object store, and only counts come back. A
worker with a GPU takes more blocks at a time, one per core that it holds and one for the GPU: some
are read, prepared or written while the GPU works on another.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import InputError, Resources, Section, setting
from raypref.core.exhausted import NoRoomError
from raypref.core.ledger import Ledger, Where, filesystem, join, write_bytes
from raypref.core.progress import Progress, counted, waiting
from raypref.core.rows import Transform
from raypref.engine.batches import PooledTransform
from raypref.engine.kept import keep as keep_workers
from raypref.engine.kept import release
from raypref.engine.worker import STOP, Branch, Reader, Worker, needs_of, shared_worker

if TYPE_CHECKING:
    from raypref.engine.pool import Pool

log = logging.getLogger(__name__)


class StreamConfig(Section):
    """How rows are cut into blocks."""

    block_rows: int = setting(
        64,
        "rows per block of models' work: what a kill can cost each worker",
        affects_result=False,
        ge=1,
    )
    part_rows: int = setting(
        256,
        "rows per shard in passes over all inputs, before pairs are made",
        affects_result=False,
        ge=1,
    )
    progress_seconds: float = setting(
        5.0, "seconds between two progress lines", affects_result=False, ge=0
    )


class Streamed(NamedTuple):
    """What became of the rows, and what it took."""

    counts: Counter[str]  # rows by reason; "ok" for those not rejected
    busy: float  # seconds that a worker's models computed, mean over workers


@dataclass(frozen=True)
class Selection:
    """Rows of a complete ledger, read part by part in the workers."""

    ledger: Ledger
    where: Where = None  # only rows that fulfil this condition
    without: frozenset[str] = frozenset()  # ids left out
    columns: tuple[str, ...] | None = None  # those read, `id` among them; None: all
    also: pa.Table | None = None  # rows of the same columns that come after those of the first part

    @property
    def condition(self) -> Where:
        """Both as one, for a scan of the whole ledger."""
        if not self.without:
            return self.where
        others = ~pc.field("id").isin(pa.array(sorted(self.without), pa.string()))
        return others if self.where is None else self.where & others

    def schema(self) -> pa.Schema:
        """The columns that are read."""
        schema = self.ledger.schema()
        return schema if self.columns is None else pa.schema(map(schema.field, self.columns))

    def count(self) -> int:
        """How many rows there are."""
        more = 0 if self.also is None else self.also.num_rows
        return self.ledger.count(self.condition) + more

    def parts(self) -> list[str]:
        """The names of the parts, in order; each is a block."""
        return self.ledger.parts()

    def part(self, name: str) -> pa.Table:
        """The selected rows of one part."""
        table = self.ledger.part(name, self.columns, where=self.where)
        if self.without:
            # An expression with all these ids would be prepared anew for every part.
            wanted = [id_ not in self.without for id_ in table["id"].to_pylist()]
            table = table.filter(pa.array(wanted, pa.bool_()))
        if self.also is not None and name == self.ledger.parts()[0]:
            own = table.replace_schema_metadata().select(self.also.schema.names)
            table = pa.concat_tables([own, self.also.cast(own.schema)])
        return table


def stream(
    rows: pa.Table | Selection,
    *,
    stages: Sequence[Transform],
    ledger: Ledger,
    keep: Sequence[str],
    config: StreamConfig,
    enough: Callable[[str], bool] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Streamed:
    """Send rows through the transforms into a ledger and commit it.

    What the ledger already holds is not done again, so a killed run continues.

    Args:
        rows: what to process; column `id` is required and unique. A table lies in the driver's
            memory and is cut into blocks; of a selection every part is a block.
        stages: the transforms, in order; each adds columns or rejects rows.
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
    return stream_branches(
        rows,
        label=re.sub(r"-[0-9a-f]{12}$", "", ledger.path.rstrip("/").rsplit("/", 1)[-1]),
        stages=stages,
        branches=[Branch([], ledger, keep)],
        config=config,
        enough=enough,
        runtime_env=runtime_env,
    )


def stream_branches(
    rows: pa.Table | Selection,
    *,
    label: str,
    stages: Sequence[Transform],
    branches: Sequence[Branch],
    config: StreamConfig,
    enough: Callable[[str], bool] | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Streamed:
    """Send rows through common transforms, then through those of each branch into its ledger.

    One pass: a row is read once, and its image decoded once, for all branches.

    Args:
        rows: as for `stream`.
        label: what the pass is called in progress lines.
        stages: what every row goes through first.
        branches: where rows go then; each ledger is begun and committed here.
        config: as for `stream`.
        enough: as for `stream`, asked with parts of the first branch.
        runtime_env: as for `stream`.

    Returns:
        How the rows of the first branch ended, and how busy the workers were.

    Raises:
        NoRoomError: a disk or a device's memory is full.
    """
    ledgers = [branch.ledger for branch in branches]
    for ledger in ledgers:
        ledger.begin()
    _forget_stop(ledgers[0])
    read: Reader
    if isinstance(rows, pa.Table):
        done = set.intersection(*(ledger.done_ids() for ledger in ledgers))
        todo = rows
        if done:
            new = [id_ not in done for id_ in rows["id"].to_pylist()]
            todo = rows.filter(pa.array(new, pa.bool_()))
        size, schema, read = config.block_rows, rows.schema, _as_it_is
        before, total = len(done), len(done) + todo.num_rows
        blocks = [todo.slice(start, size) for start in range(0, todo.num_rows, size)]
    else:  # a worker reads the part that a block names: no pixel passes through the driver
        there = set.intersection(*(set(ledger.parts()) for ledger in ledgers))
        names = [name for name in rows.parts() if name not in there]
        size, blocks = 1, [pa.table({"part": [name]}) for name in names]
        schema, read = rows.schema(), _ReadPart(rows)
        total = rows.count()
        before = min(ledger.count() for ledger in ledgers)
    if before and ledgers[0].path not in _filled:
        log.info("%s: %d of %d rows were done before", label, before, total)
    _filled.add(ledgers[0].path)
    need = shared_worker(needs_of([*stages, *(s for b in branches for s in b.stages)]))
    worker = Worker(read, stages, branches, schema, need)
    busy, stopped = 0.0, False
    if blocks:
        progress = Progress(
            label, total=total, done=before, unit="rows", every=config.progress_seconds
        )
        ranked = enough is not None
        answers = _answers(label, worker, blocks, size, ranked=ranked, runtime_env=runtime_env)
        with waiting(lambda: _waited_for(progress, worker)):
            busy, stopped = _follow(answers, worker, progress, enough)
        _forget_stop(ledgers[0])
    for branch, empty in zip(branches, worker.empty(), strict=True):
        if not branch.ledger.parts():  # an empty part tells readers the columns
            branch.ledger.write_part(empty)
        if isinstance(rows, pa.Table):
            branch.ledger.drop_repeated_rows()
        counts = branch.ledger.reasons()
        branch.ledger.commit(expected=counts.total() if stopped else total, counts=counts)
    return Streamed(ledgers[0].reasons(), busy)


_filled: set[str] = set()  # ledgers that this process has filled: another wave resumes nothing


def _forget_stop(ledger: Ledger) -> None:
    fs, path = filesystem(join(ledger.path, STOP))
    if fs.get_file_info(path).is_file:
        fs.delete_file(path)


def _as_it_is(block: pa.Table) -> tuple[pa.Table, None]:
    return block, None


class _ReadPart:
    """Reads the selected rows of one part; the output part keeps its name."""

    def __init__(self, rows: Selection) -> None:
        self.rows = rows

    def __call__(self, block: pa.Table) -> tuple[pa.Table, str]:
        name = block["part"][0].as_py()
        return self.rows.part(name), name


def _answers(
    label: str,
    worker: Worker,
    blocks: Sequence[pa.Table],
    size: int,
    *,
    ranked: bool,
    runtime_env: Mapping[str, Any] | None,
) -> Iterator[dict[str, Any]]:
    """Send blocks to workers: tasks, or a pool that is kept for the passes after this one."""
    from raypref.engine import pool
    from raypref.engine.cluster import require_nodes

    need = worker.need
    require_nodes(label, need, workers=1)  # a pool starts with what is there
    if need.workers and any(isinstance(s, PooledTransform) for s in worker.all_stages):
        beside = need.workers * need.num_cpus + 1
        require_nodes(f"{label} and its readers", Resources(num_cpus=beside), workers=1)
        release()  # workers that wait would hold the cores that read
    if not need.workers:
        release()  # what is left of their cores may be less than one per node
        return pool.run_tasks(worker, blocks, size=size, runtime_env=runtime_env)
    workers = _pool(need, ranked=ranked, runtime_env=runtime_env)
    if not workers.started:
        log.info("%s: starting %s", label, counted(need.workers, "worker"))
    return workers.run(worker, blocks)


def _pool(need: Resources, *, ranked: bool, runtime_env: Mapping[str, Any] | None) -> Pool:
    """The pool of such workers: one that is kept, or a new one."""
    from raypref.engine import pool
    from raypref.engine.cluster import free_cores

    concurrency = pool.at_once(need, ranked=ranked)
    return keep_workers(
        (need.model_copy(update={"batch": 1}), concurrency, str(runtime_env)),
        need,
        lambda: pool.Pool(need, concurrency=concurrency, runtime_env=runtime_env),
        free_cores=free_cores,
    )


def _waited_for(progress: Progress, worker: Worker) -> str:
    """What a pass that says nothing waits for."""
    if progress.first is None:
        models = ", ".join(_models(worker.all_stages))
        return f"{progress.label}: workers start" + (f" and load {models}" if models else "")
    names = ", ".join(dict.fromkeys(stage.name for stage in worker.all_stages))
    return f"{progress.label}: {progress.done}/{progress.total} rows, working on {names}"


def _models(stages: Sequence[Transform]) -> list[str]:
    """Hub ids, folders or files of the models that transforms hold, as their settings name them."""
    sections = [value for stage in stages for value in vars(stage).values()]
    names = [getattr(s, key, "") for s in sections for key in ("model", "weights")]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name))


def _follow(
    answers: Iterator[dict[str, Any]],
    worker: Worker,
    progress: Progress,
    enough: Callable[[str], bool] | None,
) -> tuple[float, bool]:
    """Returns the seconds a worker was busy, mean over workers, and whether it was enough."""
    rejected, busy, stopped, note = 0, 0.0, False, "0 rejected"
    told: set[str] = set()
    began = time.monotonic()
    for part in answers:
        if part["refused"]:
            raise InputError(part["refused"])
        if part["no_room"]:
            raise NoRoomError(f"{progress.label}: {part['no_room']}")
        for line in set(part["notes"].splitlines()) - told:
            log.warning("%s: %s", progress.label, line)
            told.add(line)
        rejected += int(part["rejected"])
        note = f"{rejected} dropped"
        if worker.need.workers:  # of tasks nobody knows how many ran at once
            busy += part["busy"] / worker.need.workers
            note += f", workers busy {busy / (time.monotonic() - began):.0%}"
        progress.add(int(part["rows"]), note=note)
        if part["part"] and enough is not None and enough(part["part"]) and not stopped:
            # Not by leaving the loop: what is in the workers' hands would be written later on.
            stopped = True
            write_bytes(join(worker.branches[0].ledger.path, STOP), b"enough")
    progress.finish(note=note)
    return busy, stopped

"""Stages onto Ray Data: the only file that does so.

Rows flow as Arrow blocks into one fixed pool of actors (or stateless tasks). A worker takes a
block through all stages and writes it as a ledger part: a kill costs at most the block in each
worker's hands, what a stage makes never crosses the object store, and only counts come back.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from raypref.config import Resources, Section, setting
from raypref.ledger import Ledger
from raypref.progress import Progress
from raypref.rows import REJECT, Row, Stage, is_rejected

log = logging.getLogger(__name__)

# What keeps the libraries' progress bars and notes out of the workers' output.
QUIET = {
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
}
# Settings of the driver that its workers must share, on whatever node they are.
PASSED_ON = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "RAYPREF_CACHE")


class StreamConfig(Section):
    """How rows are cut into blocks."""

    block_rows: int = setting(
        64, "rows a block: what a kill can cost each worker", affects_result=False, ge=1
    )
    progress_seconds: float = setting(
        5.0, "seconds between two progress lines", affects_result=False, ge=0
    )


class Streamed(NamedTuple):
    """What became of the rows, and what it took."""

    counts: Counter[str]  # rows by reason; "ok" for those not rejected
    busy: float  # seconds that a worker spent in its device stages, mean over workers


def start_ray() -> None:
    """Join the cluster of `RAY_ADDRESS` or of a running head, or start one here; keep it quiet."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes on Ray Data's own actors
    if not ray.is_initialized():
        # Progress is reported by the driver, errors come as exceptions; the rest of what workers
        # say stays in Ray's log files.
        ray.init(
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": _worker_variables()},
        )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _worker_variables() -> dict[str, str]:
    """Environment of the workers; Ray refuses to have one set by the submitted job set again."""
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    taken = submitted.get("runtime_env", {}).get("env_vars", {})
    return {name: value for name, value in (QUIET | passed_on).items() if name not in taken}


def stream(
    rows: pa.Table | Ledger,
    *,
    stages: Sequence[Stage],
    ledger: Ledger,
    keep: Sequence[str],
    config: StreamConfig,
) -> Streamed:
    """Send rows through the stages into a ledger and commit it.

    Rows the ledger already holds are not done again, so a killed run continues.

    Args:
        rows: what to process, a table or the rows of a complete ledger, which are read part by
            part in the workers; column `id` is required and unique.
        stages: in order; each adds columns or rejects rows.
        ledger: where finished rows go. Its `begin` is called here.
        keep: columns of the finished rows, besides `id` and the reject columns.
        config: block size and progress.

    Returns:
        How all rows ended, and how busy the workers were with those done now.
    """
    ledger.begin()
    busy = 0.0
    done = ledger.done_ids()
    total = rows.num_rows if isinstance(rows, pa.Table) else len(rows.done_ids())
    label = ledger.path.rstrip("/").rsplit("/", 1)[-1]
    if done:
        log.info("%s: %d of %d rows were done before", label, len(done), total)
    if len(done) < total:
        read: Callable[[pa.Table], pa.Table]
        if isinstance(rows, pa.Table):
            blocks, read, schema = _blocks(rows, done, config), _as_it_is, rows.schema
        else:  # a worker reads the part that a block names: no pixel passes through the driver
            blocks = [pa.table({"part": [part]}) for part in rows.parts()]
            read, schema = _ReadPart(rows, done), rows.schema()
        progress = Progress(
            label, total=total, done=len(done), unit="rows", every=config.progress_seconds
        )
        busy = _run(
            blocks,
            read,
            _schemas(schema, stages)[-1],
            stages=stages,
            ledger=ledger,
            keep=keep,
            progress=progress,
        )
    elif total == 0 and isinstance(rows, pa.Table):  # an empty part tells readers the columns
        schema = _schemas(rows.schema, stages)[-1]
        ledger.write_part(schema.empty_table().select(_columns(keep)))
    reasons = ledger.table(["reject_reason"])["reject_reason"].to_pylist()
    counts = Counter(reason or "ok" for reason in reasons)
    ledger.commit(expected=total, counts=counts)
    return Streamed(counts, busy)


def _blocks(rows: pa.Table, done: set[str], config: StreamConfig) -> list[pa.Table]:
    todo = rows.filter(pa.array([id_ not in done for id_ in rows["id"].to_pylist()]))
    size = config.block_rows
    return [todo.slice(start, size) for start in range(0, todo.num_rows, size)]


def _as_it_is(block: pa.Table) -> pa.Table:
    return block


class _ReadPart:
    """The rows of the part that a block names, without those done before."""

    def __init__(self, rows: Ledger, done: set[str]) -> None:
        self.rows = rows
        self.done = done

    def __call__(self, block: pa.Table) -> pa.Table:
        part = self.rows.part(block["part"][0].as_py())
        return part.filter(pa.array([id_ not in self.done for id_ in part["id"].to_pylist()]))


def _run(
    blocks: list[pa.Table],
    read: Callable[[pa.Table], pa.Table],
    schema: pa.Schema,
    *,
    stages: Sequence[Stage],
    ledger: Ledger,
    keep: Sequence[str],
    progress: Progress,
) -> float:
    need = shared_worker([stage.resources for stage in stages])
    work = (read, stages, schema, need, ledger, _columns(keep))
    worker: type[_Worker] | Callable[[pa.Table], pa.Table]
    worker = _Worker if need.workers else _Worker(*work)
    dataset = ray.data.from_arrow(blocks).map_batches(
        worker,
        fn_constructor_args=work if need.workers else None,
        compute=ActorPoolStrategy(size=need.workers) if need.workers else TaskPoolStrategy(),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=need.num_cpus,
        num_gpus=need.num_gpus or None,
        memory=int(need.memory_gib * 2**30) or None,
    )
    rejected, busy = 0, 0.0
    for part in dataset.iter_rows():
        rejected += int(part["rejected"])
        busy += part["busy"] / max(need.workers, 1)
        progress.add(int(part["rows"]), note=f"{rejected} rejected")
    progress.finish(note=f"{rejected} rejected")
    return busy if need.workers else 0.0  # nobody knows how many tasks ran at once


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


class _Worker:
    """Takes Arrow blocks through the stages, whole batches of live rows, and writes them."""

    def __init__(
        self,
        read: Callable[[pa.Table], pa.Table],
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
        """Returns only what the driver counts."""
        if not self.ready:
            # A worker that holds a fraction of a core must not start a thread per core.
            torch.set_num_threads(max(1, int(self.need.num_cpus)))
            for stage in self.stages:
                stage.setup()
            self.ready = True
        devices = [s for s in self.stages if s.resources.num_gpus] or self.stages
        busy = 0.0
        rows: list[Row] = self.read(block).to_pylist()
        for stage in self.stages:
            live = [row for row in rows if not is_rejected(row)]
            began = time.monotonic()
            for start in range(0, len(live), stage.resources.batch):
                stage(live[start : start + stage.resources.batch])
            busy += (time.monotonic() - began) * (stage in devices)
        self.ledger.write_part(pa.Table.from_pylist(rows, schema=self.schema).select(self.columns))
        rejected = sum(map(is_rejected, rows))
        return pa.table({"rows": [len(rows)], "rejected": [rejected], "busy": [busy]})

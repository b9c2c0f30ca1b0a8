"""Stages onto Ray Data: the only file that does so.

Rows flow as Arrow blocks through one operator a stage (a fixed pool of actors, or stateless tasks)
into a sink that writes a ledger part per block from the worker; only counts reach the driver.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence

import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from raypref.config import Section, setting
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
    """How rows are cut into blocks. A kill costs the blocks that are between the stages."""

    block_rows: int = setting(
        64, "rows a block; a kill repeats the blocks in flight", affects_result=False, ge=1
    )
    progress_seconds: float = setting(
        5.0, "seconds between two progress lines", affects_result=False, ge=0
    )


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
) -> Counter[str]:
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
        How many rows ended for each reason; "ok" for those not rejected.
    """
    ledger.begin()
    done = ledger.done_ids()
    total = rows.num_rows if isinstance(rows, pa.Table) else len(rows.done_ids())
    label = ledger.path.rstrip("/").rsplit("/", 1)[-1]
    if done:
        log.info("%s: %d of %d rows were done before", label, len(done), total)
    if len(done) < total:
        read = _blocks_of_table if isinstance(rows, pa.Table) else _blocks_of_ledger
        dataset, schema = read(rows, done, config)
        progress = Progress(
            label, total=total, done=len(done), unit="rows", every=config.progress_seconds
        )
        _run(dataset, schema, stages=stages, ledger=ledger, keep=keep, progress=progress)
    elif total == 0 and isinstance(rows, pa.Table):  # an empty part tells readers the columns
        schema = _schemas(rows.schema, stages)[-1]
        ledger.write_part(schema.empty_table().select(_columns(keep)))
    reasons = ledger.table(["reject_reason"])["reject_reason"].to_pylist()
    counts = Counter(reason or "ok" for reason in reasons)
    ledger.commit(expected=total, counts=counts)
    return counts


def _blocks_of_table(
    rows: pa.Table, done: set[str], config: StreamConfig
) -> tuple[ray.data.Dataset, pa.Schema]:
    todo = rows.filter(pa.array([id_ not in done for id_ in rows["id"].to_pylist()]))
    size = config.block_rows
    blocks = [todo.slice(start, size) for start in range(0, todo.num_rows, size)]
    return ray.data.from_arrow(blocks), rows.schema


def _blocks_of_ledger(
    rows: Ledger, done: set[str], config: StreamConfig
) -> tuple[ray.data.Dataset, pa.Schema]:
    del config  # a part is a block

    def read(names: pa.Table) -> pa.Table:
        part = rows.part(names["part"][0].as_py())
        return part.filter(pa.array([id_ not in done for id_ in part["id"].to_pylist()]))

    blocks = [pa.table({"part": [part]}) for part in rows.parts()]
    dataset = ray.data.from_arrow(blocks).map_batches(read, batch_size=None, batch_format="pyarrow")
    return dataset, rows.schema()


def _run(
    dataset: ray.data.Dataset,
    schema: pa.Schema,
    *,
    stages: Sequence[Stage],
    ledger: Ledger,
    keep: Sequence[str],
    progress: Progress,
) -> None:
    for stage, after in zip(stages, _schemas(schema, stages)[1:], strict=True):
        dataset = _map(dataset, stage, after)
    sink = _WritePart(ledger, _columns(keep))
    dataset = dataset.map_batches(
        sink, batch_size=None, batch_format="pyarrow", zero_copy_batch=True
    )
    rejected = 0
    for part in dataset.iter_rows():
        rejected += int(part["rejected"])
        progress.add(int(part["rows"]), note=f"{rejected} rejected")
    progress.finish(note=f"{rejected} rejected")


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


def _map(dataset: ray.data.Dataset, stage: Stage, schema: pa.Schema) -> ray.data.Dataset:
    need = stage.resources
    pool = ActorPoolStrategy(size=need.workers) if need.workers else TaskPoolStrategy()
    worker: type[_Worker] | Callable[[pa.Table], pa.Table]
    worker = _Worker if need.workers else _Worker(stage, schema)
    return dataset.map_batches(
        worker,
        fn_constructor_args=(stage, schema) if need.workers else None,
        compute=pool,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=need.num_cpus,
        num_gpus=need.num_gpus or None,
        memory=int(need.memory_gib * 2**30) or None,
    )


class _Worker:
    """Runs one stage on Arrow blocks: whole batches of live rows, rejected ones passed by."""

    def __init__(self, stage: Stage, schema: pa.Schema) -> None:
        self.stage = stage
        self.schema = schema
        self.ready = False

    def __call__(self, block: pa.Table) -> pa.Table:
        if not self.ready:
            # A worker that holds a fraction of a core must not start a thread per core.
            torch.set_num_threads(max(1, int(self.stage.resources.num_cpus)))
            self.stage.setup()
            self.ready = True
        rows: list[Row] = block.to_pylist()
        live = [row for row in rows if not is_rejected(row)]
        for start in range(0, len(live), self.stage.resources.batch):
            self.stage(live[start : start + self.stage.resources.batch])
        return pa.Table.from_pylist(rows, schema=self.schema)


class _WritePart:
    """The sink: writes a block's finished rows as one part, returns only its counts."""

    def __init__(self, ledger: Ledger, columns: list[str]) -> None:
        self.ledger = ledger
        self.columns = columns

    def __call__(self, block: pa.Table) -> pa.Table:
        self.ledger.write_part(block.select(self.columns))
        rejected = block.num_rows - block["reject_reason"].null_count
        return pa.table({"rows": [block.num_rows], "rejected": [rejected]})

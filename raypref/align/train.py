"""A training stage on Ray Train: one process a worker, gradients summed by torch.distributed.

A worker that dies brings the group down; Ray Train starts it again and the loop goes on from its
last checkpoint. Metrics travel to the driver through a queue, so that console and MLflow live in
one place.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypref.align.cache import read_pairs
from raypref.align.loop import train
from raypref.align.stage import StageConfig, StageJob
from raypref.align.watch import DivergedError, StepMetrics
from raypref.cluster import warn_if_short
from raypref.config import InputError
from raypref.device import pick_device
from raypref.diffusion.backbone import load_denoiser
from raypref.ledger import filesystem, join, write_table
from raypref.room import NoRoomError, out_of_memory

MAX_FAILURES = 3
RESIZE_SECONDS = 600.0  # between two looks whether more workers could join


def train_stage(job: StageJob, *, on_step: Callable[[StepMetrics], None]) -> None:
    """Train a stage with `stage.resources.workers` workers; returns when its LoRA is written.

    Args:
        job: what to train, from what, to where.
        on_step: called on the driver with the metrics of every step.

    Raises:
        DivergedError: training cannot go on; its last good checkpoint is kept.
        InputError: the LoRA to start from does not fit.
        NoRoomError: a worker's memory or the disk is full; the last checkpoint is kept.
    """
    need = job.stage.resources
    workers = _workers(job.stage)
    fewest = workers if isinstance(workers, int) else workers[0]
    warn_if_short(job.name, need, workers=fewest)
    per_worker = {"CPU": need.num_cpus, "GPU": need.num_gpus, "memory": need.memory_gib * 2**30}
    # Beside the driver: on a host that is lost they would take the training with them.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    beside = {"num_cpus": 0, "scheduling_strategy": here}
    queue, refusals = (Queue(actor_options=beside) for _ in range(2))
    trainer = TorchTrainer(
        # Not by `train_loop_config`: Ray's controller, a process of its own, would read that, and
        # import every model for it.
        partial(_worker, job, queue, refusals),
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]
            # Each change of their number costs the steps since a checkpoint: shrink, hardly grow.
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,  # type: ignore[call-arg]
            use_gpu=need.num_gpus > 0,
            resources_per_worker={key: value for key, value in per_worker.items() if value},
        ),
        run_config=RunConfig(
            # Ray's own record of the attempt; checkpoints are ours, so nothing is resumed from it.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=join(job.folder, "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    broken: list[Exception] = []
    listener = threading.Thread(target=_listen, args=(queue, on_step, broken), daemon=True)
    listener.start()
    try:
        trainer.fit()
        refused = [] if refusals.empty() else [refusals.get()]
    finally:
        queue.put(None)
        listener.join()
        queue.shutdown()
        refusals.shutdown()
    fs, path = filesystem(join(job.folder, "ray"))
    fs.delete_dir(path)
    for error in (*refused, *broken):
        raise error


def _listen(queue: Queue, on_step: Callable[[StepMetrics], None], broken: list[Exception]) -> None:
    """Hand on the metrics of every step; None ends it.

    An error in `on_step` goes to `broken`: nobody would see it in this thread.
    """
    while True:
        try:
            told = queue.get(timeout=60)
        except Empty:
            continue
        if told is None:
            return
        if not broken:
            try:
                on_step(told)
            except Exception as error:
                broken.append(error)


def _workers(stage: StageConfig) -> int | tuple[int, int]:
    """How many there must be, or the fewest and the most; any number gives the same run."""
    most = stage.resources.workers
    return (stage.min_workers, most) if 0 < stage.min_workers < most else most


@dataclass(frozen=True)
class _TorchGroup:
    """The ranks of this Ray Train worker group."""

    rank: int
    world: int

    def sum(self, values: torch.Tensor) -> None:
        if self.world > 1:
            torch.distributed.all_reduce(values)


def _worker(job: StageJob, queue: Queue, refusals: Queue) -> None:
    """What every rank runs."""
    if not refusals.empty():
        return  # a group before this one found that training cannot go on
    context = ray.train.get_context()
    group = _TorchGroup(context.get_world_rank(), context.get_world_size())
    need = job.stage.resources
    torch.set_num_threads(max(1, int(need.num_cpus)))
    device = ray.train.torch.get_device() if need.num_gpus else pick_device(0)
    try:
        denoiser = load_denoiser(job.base, device=device)
        history = train(
            denoiser,
            read_pairs(job.cache),
            job.stage,
            job.lora,
            name=job.draws,
            seed=job.seed,
            folder=job.folder,
            start=job.start,
            group=group,
            on_step=queue.put,
        )
        if group.rank == 0:
            write_table(join(job.folder, "metrics.parquet"), _table(history))
    except (DivergedError, InputError) as error:
        # Not raised: Ray Train would start the group again, and the same would happen again.
        if group.rank == 0:
            refusals.put(error)
        return
    except RuntimeError as error:
        if out_of_memory(error):
            refusals.put(NoRoomError(_advice(job)))
        elif isinstance(error, NoRoomError):
            refusals.put(error)
        raise  # other ranks wait for this one; the group that starts again ends at once


def _advice(job: StageJob) -> str:
    """What to change when memory ran out."""
    key, stage = job.draws, job.stage  # stage2_alone has the settings of stage2
    fixes = [f"{key}.micro_batch={stage.micro_batch // 2}"] if stage.micro_batch > 1 else []
    if not stage.gradient_checkpointing:
        fixes.append(f"{key}.gradient_checkpointing=true")
    if stage.objective == "dro" and stage.rollout_batch > 1:
        fixes.append(f"{key}.rollout_batch={stage.rollout_batch // 2}")
    return (
        f"{job.name}: memory ran out with {key}.micro_batch={stage.micro_batch}; try "
        f"{' or '.join(fixes) or 'a GPU with more memory'}, which move results by rounding only; "
        "the run goes on from the last checkpoint"
    )


def _table(history: list[StepMetrics]) -> pa.Table:
    """A row a step; the columns are the same whether or not the stage was resumed."""
    names = sorted(history[0].keys() - {"step"})
    fields = [("step", pa.int64()), *((name, pa.float64()) for name in names)]
    return pa.Table.from_pylist(history, schema=pa.schema(fields))

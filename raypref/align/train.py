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
from typing import Any

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
from raypref.align.stage import StageConfig
from raypref.align.watch import DivergedError, StepMetrics
from raypref.config import InputError
from raypref.diffusion.backbone import BackboneConfig, load_denoiser, pick_device
from raypref.diffusion.lora import LoraConfig
from raypref.ledger import Ledger, filesystem, join, write_table

MAX_FAILURES = 3
RESIZE_SECONDS = 600.0  # between two looks whether more workers could join


@dataclass(frozen=True)
class StageJob:
    """All a worker needs to know; paths are absolute, workers have directories of their own.

    `draws` names the stream of random numbers; two stages with the same one see the same samples.
    """

    name: str
    draws: str
    base: BackboneConfig
    lora: LoraConfig
    stage: StageConfig
    cache: Ledger
    folder: str
    start: str | None
    seed: int


def train_stage(job: StageJob, *, on_step: Callable[[StepMetrics], None]) -> None:
    """Train a stage with `stage.resources.workers` workers; returns when its LoRA is written.

    Args:
        job: what to train, from what, to where.
        on_step: called on the driver with the metrics of every step.

    Raises:
        DivergedError: training cannot go on; its last good checkpoint is kept.
        InputError: the LoRA to start from does not fit.
    """
    need = job.stage.resources
    per_worker = {"CPU": need.num_cpus, "GPU": need.num_gpus, "memory": need.memory_gib * 2**30}
    # Beside the driver: on a host that is lost it would take the training with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "queue": queue},
        scaling_config=ScalingConfig(
            num_workers=_workers(job.stage),  # type: ignore[arg-type]
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
    refusals: list[Exception] = []
    listener = threading.Thread(target=_listen, args=(queue, on_step, refusals), daemon=True)
    listener.start()
    try:
        trainer.fit()
    finally:
        queue.put(None)
        listener.join()
        queue.shutdown()
    fs, path = filesystem(join(job.folder, "ray"))
    fs.delete_dir(path)
    if refusals:
        raise refusals[0]


def _listen(
    queue: Queue, on_step: Callable[[StepMetrics], None], refusals: list[Exception]
) -> None:
    """Hand on what rank 0 tells: metrics of a step, or why training cannot go on; None ends it.

    An error in `on_step` is a reason as well: nobody would see it in this thread.
    """
    while True:
        try:
            told = queue.get(timeout=60)
        except Empty:
            continue
        if told is None:
            return
        if isinstance(told, Exception):
            refusals.append(told)
        elif not refusals:
            try:
                on_step(told)
            except Exception as error:
                refusals.append(error)


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


def _worker(config: dict[str, Any]) -> None:
    """What every rank runs."""
    job: StageJob = config["job"]
    queue: Queue = config["queue"]
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
    except (DivergedError, InputError) as error:
        # Not raised: Ray Train would start the group again, and the same would happen again.
        if group.rank == 0:
            queue.put(error)
        return
    if group.rank == 0:
        write_table(join(job.folder, "metrics.parquet"), _table(history))


def _table(history: list[StepMetrics]) -> pa.Table:
    """A row a step; the columns are the same whether or not the stage was resumed."""
    names = sorted(history[0].keys() - {"step"})
    fields = [("step", pa.int64()), *((name, pa.float64()) for name in names)]
    return pa.Table.from_pylist(history, schema=pa.schema(fields))

"""What every rank of a group of Ray Train workers runs: one training after another."""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from ray import cloudpickle

from raypref.align.image_scores import LatentScores, WorkerScores
from raypref.align.job import TrainingJob
from raypref.align.loop import train
from raypref.align.pair_data import read_pairs
from raypref.align.pooled_scores import PooledScores
from raypref.align.rollout_config import RolloutConfig
from raypref.align.sharding import why_unsharded
from raypref.align.watch import DivergedError, StepMetrics
from raypref.core.config import InputError, Resources
from raypref.core.device import pick_device
from raypref.core.exhausted import NoRoomError
from raypref.core.ledger import join, write_table
from raypref.engine.memory import out_of_memory
from raypref.models.backbone import load_autoencoder, load_denoiser
from raypref.models.families.registry import family
from raypref.models.lora_formats import write_shared


@dataclass(frozen=True)
class _TorchGroup:
    """The ranks of this Ray Train worker group."""

    rank: int
    world: int

    def sum(self, values: torch.Tensor) -> None:
        if self.world > 1:
            torch.distributed.all_reduce(values)


def work(desk: Any, need: Resources) -> None:
    """Do one job after another, until there is none.

    Args:
        desk: a handle of `desk.Desk`.
        need: what this worker holds.
    """
    context = ray.train.get_context()
    group = _TorchGroup(context.get_world_rank(), context.get_world_size())
    # Read by cuBLAS when it starts; without it `deterministic` is refused there.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(max(1, int(need.num_cpus)))
    device = ray.train.torch.get_device() if need.num_gpus else pick_device(0)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # a reward's model is loaded onto the current one
    number = ray.get(desk.begin.remote(group.rank))
    while (job := ray.get(desk.job.remote(number))) is not None:
        if not _train(cloudpickle.loads(job), desk, group, device):
            return
        number += 1
        gc.collect()  # FSDP's hooks are cycles, which would hold the network while the next loads


def _train(job: TrainingJob, desk: Any, group: _TorchGroup, device: torch.device) -> bool:
    """One rank's part of a job; returns False when it was refused."""

    def tell(kind: str, value: Any = None) -> Any:
        return desk.tell.remote(kind, cloudpickle.dumps(value))

    def note(kind: str, value: Any) -> None:
        if group.rank == 0:
            tell(kind, value)

    try:
        note("state", f"loading {job.base.model}")
        denoiser = load_denoiser(job.base, device=device)
        if job.training.sharded and group.world > 1:
            note("state", f"sharding all weights over {group.world} workers")
        history = train(
            denoiser,
            read_pairs(
                job.cache,
                job.base,
                pairs=job.pairs,
                facts=job.training.columns,
                scores=job.training.labelled,
                texts=bool(job.rewards),
            ),
            job.training,
            job.lora,
            name=job.name,
            draws=job.draws,
            seed=job.seed,
            folder=job.folder,
            start=job.start,
            group=group,
            on_step=partial(note, "step"),
            hole=family(job.base.family).hole,
            judge=_judge(job, device, group.rank),
        )
        if group.rank == 0:
            if job.lora.rank:
                write_shared(job.folder, name=job.shared, component=denoiser.component)
            write_table(join(job.folder, "metrics.parquet"), _table(history))
            ray.get(tell("done"))
        return True
    except DivergedError as error:
        # Every rank finds it at the same step. Not raised: Ray Train would start the group again.
        note("refused", error)
        return False
    except (InputError, RuntimeError) as error:
        if out_of_memory(error):
            ray.get(tell("refused", NoRoomError(_advice(job))))
        elif isinstance(error, InputError | NoRoomError):
            ray.get(tell("refused", error))
        else:
            raise
        if group.world > 1:
            raise  # others may wait for this rank; the group that starts again ends at once
        return False


def _judge(job: TrainingJob, device: torch.device, rank: int) -> LatentScores | None:
    """What makes rewards of latents, for a training that reads rewards."""
    if not job.rewards:
        return None
    autoencoder = load_autoencoder(job.base.in_precision(job.vae_dtype), device=device)
    if job.scored_by:
        return LatentScores(autoencoder, PooledScores(job.scored_by, rank))
    gpus = job.training.resources.num_gpus  # the models are where the network is
    here = {name: config.on(gpus) for name, config in job.rewards.items()}
    return LatentScores(autoencoder, WorkerScores(here))


def _advice(job: TrainingJob) -> str:
    """What to change when memory ran out."""
    key, training = f"train.{job.name}", job.training
    size = training.micro_batch
    fixes = [f"{key}.micro_batch={size // 2}"] if size > 1 else []
    if not training.gradient_checkpointing:
        fixes.append(f"{key}.gradient_checkpointing=true")
    shares = training.resources.workers > 1 and not why_unsharded(training, rank=job.lora.rank)
    if shares and not training.sharded:
        fixes.append(f"{key}.sharded=true")
    if isinstance(training, RolloutConfig) and training.rollout_batch > 1:
        fixes.append(f"{key}.rollout_batch={training.rollout_batch // 2}")
    return (
        f"{job.name}: memory ran out with {key}.micro_batch={size}; try "
        f"{' or '.join(fixes) or 'a GPU with more memory'}, which move results by rounding only; "
        "the same command resumes from the last checkpoint"
    )


def _table(history: list[StepMetrics]) -> pa.Table:
    """One row per step; the columns are the same whether or not the training was resumed."""
    names = sorted({key for metrics in history for key in metrics} - {"step"})
    fields = [("step", pa.int64()), *((name, pa.float64()) for name in names)]
    return pa.Table.from_pylist(history, schema=pa.schema(fields))

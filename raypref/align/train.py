"""Trainings on Ray Train: one process per worker, gradients summed by torch.distributed.

A worker that dies brings the group down; Ray Train starts it again and the loop resumes from the
last checkpoint. A group stays for the trainings that follow, as long as they ask for the same
workers: jobs reach it, and metrics leave it, through an actor beside the driver, so that console
and MLflow live in one place. Actors that hold reward models, where a training has them, belong to
its group: they start, stay and end with it.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypref.align.config import TrainingConfig
from raypref.align.desk import Desk
from raypref.align.job import TrainingJob
from raypref.align.reward_groups import RewardGroup, all_of, hold, reward_groups
from raypref.core.config import Resources
from raypref.core.imports import quick_imports
from raypref.core.ledger import filesystem, join
from raypref.core.progress import counted, waiting
from raypref.engine.actors import Actors
from raypref.engine.cluster import free_cores, require_nodes
from raypref.engine.kept import keep

if TYPE_CHECKING:
    from raypref.align.watch import StepMetrics

log = logging.getLogger(__name__)

MAX_FAILURES = 3
END_SECONDS = 60.0  # for workers to end
RESIZE_SECONDS = 600.0  # between two looks whether more workers could join


def train_on_workers(job: TrainingJob, *, on_step: Callable[[StepMetrics], None]) -> None:
    """Train with `training.resources.workers` workers; returns when the LoRA is written.

    Args:
        job: what to train, from what, to where.
        on_step: called on the driver with the metrics of every step.

    Raises:
        DivergedError: training cannot go on; its last good checkpoint is kept.
        InputError: the LoRA to start from does not fit.
        NoRoomError: a worker's memory or the disk is full; the last checkpoint is kept.
    """
    need, workers = job.training.resources, _workers(job.training)
    rewards = reward_groups(job.training, job.rewards)
    fewest = need.model_copy(
        update={"workers": workers if isinstance(workers, int) else workers[0]}
    )
    require_nodes(job.name, all_of([fewest, *(each.need for each in rewards)]), workers=1)
    group = keep(
        ("training", workers, need.model_copy(update={"batch": 1}), repr(rewards)),
        all_of([need, *(each.need for each in rewards)]),
        lambda: WorkerGroup(workers, need, folder=job.folder, rewards=rewards),
        free_cores=free_cores,
    )
    if not group.started:
        actors = sum(each.need.workers for each in rewards)
        beside = f" and {counted(actors, 'reward actor')}" if actors else ""
        log.info("%s: starting %s%s", job.name, counted(need.workers, "worker"), beside)
    group.train(job, on_step)


class WorkerGroup:
    """A started group of Ray Train workers that trains one job after another.

    Args:
        workers: how many there must be, or the fewest and the most.
        need: what each holds.
        folder: below which Ray keeps its own record while the group lives, local or URI.
        rewards: those whose models are in actors beside the workers.
    """

    def __init__(
        self,
        workers: int | tuple[int, int],
        need: Resources,
        *,
        folder: str,
        rewards: Sequence[RewardGroup] = (),
    ) -> None:
        self.alive = True
        self.started = False  # once a worker has spoken
        self._record = join(folder, "ray")
        # Beside the driver: on a host that is lost it would take the training with it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk = Desk.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
        # Before the workers, who would take the cores of those that are to grow.
        self._actors = [
            Actors(partial(hold, each), each.need, runtime_env=each.runtime_env) for each in rewards
        ]
        handles = [actors.handles for actors in self._actors]
        self._scored_by = tuple(zip(rewards, handles, strict=True))
        per_worker = {"CPU": need.num_cpus, "GPU": need.num_gpus, "memory": need.memory_gib * 2**30}
        trainer = TorchTrainer(
            # Not by `train_loop_config`: Ray's controller, a process of its own, would read that,
            # and import every model for it.
            partial(_work, self._desk, need),
            scaling_config=ScalingConfig(
                num_workers=workers,  # type: ignore[arg-type]
                # Each change of their number costs the steps since a checkpoint: hardly grow.
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,  # type: ignore[call-arg]
                use_gpu=need.num_gpus > 0,
                resources_per_worker={key: value for key, value in per_worker.items() if value},
            ),
            run_config=RunConfig(
                # Ray's own record of the attempt; checkpoints are ours: nothing is resumed from it.
                name=f"attempt-{uuid.uuid4().hex[:8]}",
                storage_path=self._record,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        self._failure: list[BaseException] = []
        self._fit = threading.Thread(target=self._run, args=(trainer,), daemon=True)
        self._fit.start()

    def train(self, job: TrainingJob, on_step: Callable[[StepMetrics], None]) -> None:
        """Train one job; returns when its LoRA is written. Raises as `train_on_workers` does."""
        state = ["waiting for its workers to start"]
        self.alive = False  # until the job is done: a group that failed takes no other
        job = replace(job, scored_by=self._scored_by)
        ray.get(self._desk.give.remote(cloudpickle.dumps(job)))
        with waiting(lambda: f"{job.name}: {state[0]}"):
            while True:
                for kind, value in self._news():
                    self.started = True
                    if kind == "step":
                        on_step(value)
                        state[0] = f"step {value['step']:.0f} is done, working on the next"
                    elif kind == "state":
                        state[0] = value
                        log.info("%s: %s", job.name, value)
                    elif kind == "refused":
                        raise value
                    else:
                        # Ray Train counts the failures of all jobs: a clean group takes the next.
                        self.alive = ray.get(self._desk.starts_of_groups.remote()) == 1
                        return

    def _news(self) -> list[tuple[str, Any]]:
        """What the workers told since the last call; waits for it."""
        told = self._desk.news.remote()
        while True:
            try:
                return [
                    (kind, cloudpickle.loads(value)) for kind, value in ray.get(told, timeout=1)
                ]
            except GetTimeoutError:
                if not self._fit.is_alive():
                    ended = RuntimeError("Ray Train ended before the training did")
                    raise (self._failure or [ended])[0] from None

    def _run(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # raised where the news are read
            self._failure.append(error)

    def close(self) -> None:
        """End the workers and the actors beside them, and forget what Ray noted of them."""
        self.alive = False
        ray.get(self._desk.close.remote())
        self._fit.join(timeout=END_SECONDS)
        for actors in self._actors:
            actors.close()
        ray.kill(self._desk)
        fs, path = filesystem(self._record)
        with suppress(FileNotFoundError):  # the training was cleared
            fs.delete_dir(path)


def _workers(training: TrainingConfig) -> int | tuple[int, int]:
    """How many there must be, or the fewest and the most; any number gives the same run."""
    most = training.resources.workers
    return (training.min_workers, most) if 0 < training.min_workers < most else most


def _work(desk: Any, need: Resources) -> None:
    """What Ray Train starts on every rank. Only there the models' libraries are imported."""
    with quick_imports():
        from raypref.align.rank import work

    work(desk, need)

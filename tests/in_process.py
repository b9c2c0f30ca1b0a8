"""Jobs in the test's own process: for tests of what a job makes, not of who makes it.

Passes and trainings run the code of Ray's workers. What they get is pickled first, as Ray does.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pyarrow as pa
import pytest
import torch
from ray import cloudpickle

from raypref.align import rank, train
from raypref.align.job import TrainingJob
from raypref.align.watch import StepMetrics
from raypref.cli import main
from raypref.engine import stream
from raypref.engine.worker import Worker
from raypref.judge import job as judging
from raypref.models import hub
from raypref.run import execute


def job_here(name: str, *arguments: str) -> tuple[int, str]:
    """Run a command of `raypref` to its end; exit status, and all that it said."""
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(action="ignore"),  # workers show none
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        without_ray(patch)
        status = main(name, arguments, program=f"raypref {name}")
    return status, said.getvalue()


def without_ray(patch: pytest.MonkeyPatch) -> None:
    """Let this process do what workers do, one block after another."""
    patch.setattr(stream, "_answers", _answers)
    patch.setattr(stream, "_filled", set())  # each job resumes what the one before it made
    patch.setattr(train, "train_on_workers", _train_here)
    patch.setenv(hub.COMMITS, "{}")  # a job leaves there what its workers load
    for module in (execute, judging):
        patch.setattr(module, "start_ray", lambda: None)
    for look in ("require_nodes", "require_usable_gpus", "idle_gpus"):
        patch.setattr(execute, look, lambda *about, **more: None)


def _answers(
    label: str, worker: Worker, blocks: Sequence[pa.Table], size: int, **_: Any
) -> Iterator[dict[str, Any]]:
    sent = cloudpickle.loads(cloudpickle.dumps(worker))
    for block in blocks:
        (answer,) = sent(block).to_pylist()
        yield answer


class _Desk:
    """Takes the messages of the only rank."""

    def __init__(self, on_step: Callable[[StepMetrics], None]) -> None:
        self.on_step = on_step
        self.tell = self

    def remote(self, kind: str, value: bytes) -> None:
        """As `Desk.tell`."""
        message = cloudpickle.loads(value)
        if kind == "step":
            self.on_step(message)
        if kind == "refused":
            raise message


def _train_here(job: TrainingJob, *, on_step: Callable[[StepMetrics], None]) -> None:
    sent = cloudpickle.loads(cloudpickle.dumps(job))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank.ray, "get", lambda answer: answer)
        rank._train(sent, _Desk(on_step), rank._TorchGroup(0, 1), torch.device("cpu"))

"""Watching a training: metrics for which the device does not wait, and when to stop."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from raypref.align.config import TrainingConfig

StepMetrics = dict[str, float]

# How many steps may be enqueued beyond the last one that was read. On the CPU a step has ended when
# its call returns. Elsewhere the host waits for step k only after step k+1 is on its way. It is the
# same number on every rank, so all ranks see a bad step at the same place and stop there together.
LAG = {"cpu": 0}
LAG_ELSEWHERE = 1
# The size of the update, as a metric: of a LoRA, or of all weights that are trained.
LORA_NORM, WEIGHTS_NORM = "lora_norm", "weights_norm"
USUAL = 50  # steps whose median is the usual norm of the gradient


class DivergedError(FloatingPointError):
    """Training cannot go on: numbers that are not finite, or a network worse than its reference."""


class _OnItsWay(NamedTuple):
    """Metrics of a step whose values may still be in flight on the device."""

    step: int
    began: float
    known: StepMetrics
    names: list[str]
    values: Tensor  # on the host, right once `ready` has happened
    ready: torch.cuda.Event | None


class Watch:
    """Reads the metrics of every step, in order, each as late as the device needs.

    Args:
        training: its settings: when to stop.
        history: metrics of the steps before; every step read is appended.
        name: of the training, for messages.
        tell: called with the metrics of every step.
    """

    def __init__(
        self,
        training: TrainingConfig,
        *,
        history: list[StepMetrics],
        name: str,
        tell: Callable[[StepMetrics], None],
    ) -> None:
        self.training = training
        self.history = history
        self.name = name
        self.tell = tell
        self.waiting: deque[_OnItsWay] = deque()
        self.last_read = 0.0

    def add(self, step: int, metrics: Mapping[str, Tensor | float], *, began: float) -> None:
        """Take the metrics of a step, and read those of the steps that are due.

        Args:
            step: number of optimizer steps done.
            metrics: scalars; tensors are on the network's device.
            began: `time.perf_counter()` when the step began.

        Raises:
            DivergedError: a step that was read shows that training cannot go on.
        """
        tensors = {key: value for key, value in metrics.items() if isinstance(value, Tensor)}
        known = {key: value for key, value in metrics.items() if not isinstance(value, Tensor)}
        stacked = torch.stack(list(tensors.values()))
        # The copy is enqueued now, behind this step's work and before the next one's.
        values = stacked.to("cpu", non_blocking=True)
        ready = torch.cuda.current_stream().record_event() if stacked.is_cuda else None
        self.waiting.append(_OnItsWay(step, began, known, list(tensors), values, ready))
        self._read(all_but=LAG.get(stacked.device.type, LAG_ELSEWHERE))

    def read_all(self) -> None:
        """Wait for the device and read what is left: before anything is written.

        Raises:
            DivergedError: as in `add`.
        """
        self._read(all_but=0)

    def _read(self, *, all_but: int) -> None:
        while len(self.waiting) > all_but:
            step, began, known, names, values, ready = self.waiting.popleft()
            if ready is not None:
                ready.synchronize()
            now = time.perf_counter()
            seconds = now - max(began, self.last_read)
            self.last_read = now
            metrics = {
                "step": step,
                **dict(zip(names, values.tolist(), strict=True)),
                **known,
                "seconds": seconds,
                "images_per_second": self.training.batch / seconds,
            }
            self.history.append(metrics)
            self._judge(metrics)
            self.tell(metrics)

    def _judge(self, metrics: StepMetrics) -> None:
        """Stop a training that has failed.

        Beside numbers that are not finite: the gradient's norm before clipping against what it was,
        and what the objective says of its own metrics.
        """
        step = int(metrics["step"])
        for key in ("loss", "grad_norm", LORA_NORM, WEIGHTS_NORM):
            if not math.isfinite(metrics.get(key, 0.0)):
                raise DivergedError(
                    f"{self.name}: {key} is {metrics[key]} at step {step}; the last good "
                    f"checkpoint is kept. Lower train.{self.name}.lr or check the data"
                )
        self._judge_gradient(step)
        if told := self.training.health(self.history, key=f"train.{self.name}"):
            raise DivergedError(
                f"{self.name}: at step {step}, {told}; no checkpoint was written after that. "
                f"Lower train.{self.name}.lr or check the data"
            )

    def _judge_gradient(self, step: int) -> None:
        *before, now = (row["grad_norm"] for row in self.history[-USUAL - 1 :])
        usual = median(before) if before else 0.0  # 0 also where the hinge is closed
        if usual and now > self.training.max_grad_ratio * usual:
            key = f"train.{self.name}"
            raise DivergedError(
                f"{self.name}: grad_norm is {now:.3g} at step {step}, more than "
                f"{key}.max_grad_ratio={self.training.max_grad_ratio:g} times the {usual:.3g} that "
                f"was usual; the last good checkpoint is kept. Lower {key}.lr or check the data"
            )

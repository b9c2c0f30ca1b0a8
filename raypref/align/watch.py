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

from raypref.align.stage import StageConfig

StepMetrics = dict[str, float]

# How many steps may be enqueued beyond the last one that was read. On the CPU a step has ended when
# its call returns. Elsewhere the host waits for step k only after step k+1 is on its way. It is the
# same number on every rank, so all ranks see a bad step at the same place and stop there together.
LAG = {"cpu": 0}
LAG_ELSEWHERE = 1
USUAL = 50  # steps whose median is the usual norm of the gradient
JUDGED = 256  # samples over which the error is compared: one step of the paper's batch


class DivergedError(FloatingPointError):
    """Training cannot go on: numbers that are not finite, or a network worse than its reference."""


class _OnItsWay(NamedTuple):
    """Metrics of a step whose values may still be being computed."""

    step: int
    began: float
    known: StepMetrics
    names: list[str]
    values: Tensor  # on the host, right once `ready` has happened
    ready: torch.cuda.Event | None


class Watch:
    """Reads the metrics of every step, in order, each as late as the device needs.

    Args:
        stage: when to stop.
        history: metrics of the steps before; every step read is appended.
        name: of the stage, for messages.
        tell: called with the metrics of every step.
    """

    def __init__(
        self,
        stage: StageConfig,
        *,
        history: list[StepMetrics],
        name: str,
        tell: Callable[[StepMetrics], None],
    ) -> None:
        self.stage = stage
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
                "images_per_second": self.stage.batch / seconds,
            }
            self.history.append(metrics)
            self._judge(metrics)
            self.tell(metrics)

    def _judge(self, metrics: StepMetrics) -> None:
        """Stop a training that has failed.

        Beside numbers that are not finite there are two signs of it, for any objective. The error
        on the photographs: none wants it larger than the reference's, and one several times that
        is a network out of order. And the gradient's norm before clipping, against what it was. The
        loss itself does not tell: Diffusion-DRO's is near zero and negative, and Diffusion-DPO's
        may fall while both errors rise.
        """
        step = int(metrics["step"])
        for key in ("loss", "grad_norm", "lora_norm"):
            if not math.isfinite(metrics[key]):
                raise DivergedError(
                    f"{self.name}: {key} is {metrics[key]} at step {step}; the last good "
                    f"checkpoint is kept. Lower {self.name}.lr or look at the data"
                )
        self._judge_gradient(step)
        self._judge_error(step)

    def _judge_gradient(self, step: int) -> None:
        *before, now = (row["grad_norm"] for row in self.history[-USUAL - 1 :])
        usual = median(before) if before else 0.0  # 0 also where the hinge is closed
        if usual and now > self.stage.max_grad_ratio * usual:
            raise DivergedError(
                f"{self.name}: grad_norm is {now:.3g} at step {step}, more than "
                f"{self.name}.max_grad_ratio={self.stage.max_grad_ratio:g} times the {usual:.3g} "
                f"that was usual; the last good checkpoint is kept. Lower {self.name}.lr or look "
                "at the data"
            )

    def _judge_error(self, step: int) -> None:
        steps = math.ceil(JUDGED / self.stage.batch)
        recent = self.history[-steps:]
        if len(recent) < steps:
            return  # too few samples to tell from chance
        reference = sum(row["ref_winner"] for row in recent)
        ratio = 1 + sum(row["winner_gap"] for row in recent) / reference
        if ratio > self.stage.max_error_ratio:
            raise DivergedError(
                f"{self.name}: the error on the photographs is {ratio:.2f} times the reference's "
                f"at step {step}, more than {self.name}.max_error_ratio="
                f"{self.stage.max_error_ratio:g}; no checkpoint was written after it rose so far. "
                f"Lower {self.name}.lr or look at the data"
            )

"""How every embedded model is fitted: one loop, one schedule, weights averaged over time."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from raypref.demo import models

log = logging.getLogger(__name__)

REPORTS = 40  # lines a training says


def fit_model(
    name: str,
    modules: Sequence[nn.Module],
    loss: Callable[[np.ndarray, np.random.Generator], Tensor],
    examples: int,
    *,
    steps: int,
    batch: int,
    lr: float,
) -> None:
    """AdamW with warm-up and cosine decay; the modules end with the average of their weights.

    Args:
        name: for the log.
        modules: what is trained.
        loss: of a batch, given its indices and a generator for all that is drawn.
        examples: how many there are; batches go through them in epochs.
        steps: optimizer steps, at least 2.
        batch: examples a step.
        lr: highest learning rate.
    """
    steps = max(steps, 2)
    rng = np.random.default_rng(0)
    parameters = [p for module in modules for p in module.parameters()]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    shape = functools.partial(_rate, steps=steps)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    every = max(1, steps // REPORTS)
    began, losses = time.monotonic(), []
    for module in modules:
        module.train()
    batches = _epochs(examples, batch, rng)
    for step in range(1, steps + 1):
        indices = next(batches)
        value = loss(indices, rng)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        decay = min(0.998, step / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, list[Tensor](parameters), 1 - decay)
        losses.append(value.item())
        if step % every == 0:
            recent = np.mean(losses[-every:])
            seconds = time.monotonic() - began
            log.info("%s: %d/%d steps, loss %.4f, %.0f s", name, step, steps, recent, seconds)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)
    for module in modules:
        module.eval()


def _rate(step: int, *, steps: int) -> float:
    return min(1, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def _epochs(count: int, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch + 1, batch):
            yield order[start : start + batch]


class Noise:
    """Forward diffusion of latents, and captions dropped for classifier-free guidance."""

    def __init__(self) -> None:
        self.schedule = DDPMScheduler.from_config(models.scheduler().config)
        self.empty = tokens(models.tokenizer(), [""])

    def __call__(self, z_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, the noise, and the timesteps."""
        noise = torch.randn_like(z_BCHW)
        steps = torch.randint(0, 1000, (len(z_BCHW),))
        return self.schedule.add_noise(z_BCHW, noise, steps), noise, steps

    def drop(self, ids: Tensor, rng: np.random.Generator) -> Tensor:
        """One caption in ten becomes the empty one."""
        dropped = torch.from_numpy(rng.random(len(ids)) < 0.1)
        return torch.where(dropped[:, None], self.empty, ids)


def tokens(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Captions as token ids, int64 [B, 77]."""
    batch = tokenizer(
        list(captions), padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    return batch["input_ids"]

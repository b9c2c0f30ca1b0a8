"""Plain Z-Image, for `plain_training.py`: it shares no code with the project."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ZImagePipeline
from plain_training import SD3, Several, T
from torch import Tensor, nn


class ZImage(SD3):
    """Velocity prediction the other way round; levels with the checkpoint's shift."""

    kind: Any = ZImagePipeline

    def prompt(self, text: str) -> Any:
        [states], _ = self.pipe.encode_prompt([text], "cpu", False)
        return states

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        """In float64 but for the time and where diffusers turns queries and keys, in float32."""
        times = (T - torch.tensor(ts, dtype=torch.float32)) / T
        velocities = module([x[:, None] for x in xs], times, prompts).sample
        return -torch.stack([velocity[:, 0] for velocity in velocities])

    def even(self, n: int) -> list[float]:
        """1 to 1 / n, shifted."""
        shift = self.fresh().config.shift
        plain = torch.linspace(1, 1 / n, n)
        return [T * sigma for sigma in (shift * plain / (1 + (shift - 1) * plain)).tolist()]

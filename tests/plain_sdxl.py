"""Plain SDXL, for `plain_training.py`: it shares no code with the project."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from plain_training import SD15, Network, Several, T
from torch import Tensor, nn


class SDXL(SD15):
    """Epsilon prediction, Euler; two encoders; no caption is zeros; ids of an uncropped image."""

    kind: Any = StableDiffusionXLPipeline

    def prompt(self, text: str) -> Any:
        states, _, pooled, _ = self.pipe.encode_prompt([text], do_classifier_free_guidance=False)
        return (states, pooled) if text else (0 * states, 0 * pooled)

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        states, pooled = (torch.cat(parts) for parts in zip(*prompts, strict=True))
        height, width = (8 * length for length in xs[0].shape[1:])
        ids = torch.tensor([[height, width, 0, 0, height, width]] * len(xs))
        added = {"text_embeds": pooled, "time_ids": ids}
        times = torch.tensor([*map(int, ts)])
        return module(torch.stack(xs), times, states, added_cond_kwargs=added).sample

    def even(self, n: int) -> list[float]:
        return [(n - 1 - i) * (T // n) + 1 for i in range(n)]

    def rollout(self, predict: Network, x: Tensor, grid: list[float]) -> list[Any]:
        seen: list[Any] = []
        for t, following in zip(grid, [*grid[1:], None], strict=True):
            eps, abar = predict(x, t), self.abar[int(t)]
            seen.append((x, eps, t))
            then = 1.0 if following is None else self.abar[int(following)]
            scaled = x / math.sqrt(abar)  # its noise has sigma = sqrt((1 - abar) / abar)
            scaled = scaled + (math.sqrt(1 / then - 1) - math.sqrt(1 / abar - 1)) * eps
            x = math.sqrt(then) * scaled
        return [*seen, x]

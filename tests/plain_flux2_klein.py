"""Plain FLUX.2 [klein], for `plain_training.py`: it shares no code with the project."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import Flux2KleinPipeline
from plain_training import SD3, Several, T
from torch import Tensor, nn


class Flux2Klein(SD3):
    """Velocity prediction on patches of latents; levels without a shift."""

    kind: Any = Flux2KleinPipeline
    tokens = 64  # that are read of a text

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        whole = self.pipe
        self.pipe = SimpleNamespace(
            components=whole.components,
            image_processor=whole.image_processor,
            encode_prompt=whole.encode_prompt,
            vae=_Normalised(whole),
        )

    def prompt(self, text: str) -> Any:
        """The first tokens of 512: what comes later changes no state before it."""
        return self.pipe.encode_prompt([text], "cpu", max_sequence_length=self.tokens)

    def many(self, module: nn.Module, xs: Several, ts: Several, prompts: Several) -> Tensor:
        sequences, [text_ids, *_] = zip(*prompts, strict=True)
        _, h, w = xs[0].shape
        ids = [[0, row, column, 0] for row in range(h) for column in range(w)]
        made = module(
            hidden_states=torch.stack([x.flatten(1).T for x in xs]),
            timestep=torch.tensor(ts, dtype=torch.float64) / T,
            encoder_hidden_states=torch.cat(sequences),
            txt_ids=text_ids,
            img_ids=torch.tensor(ids),
        ).sample
        return made.mT.reshape(len(xs), *xs[0].shape)

    def draw_timestep(self, generator: torch.Generator) -> float:
        return T * self.levels[T - 1 - int(torch.randint(T, (), generator=generator))]

    def even(self, n: int) -> list[float]:
        """1 to 1 / n, shifted by exp(mu)."""
        mu = shift(16, n)  # of 64x64 pixels
        return [T * math.exp(mu) / (math.exp(mu) + n / (n - i) - 1) for i in range(n)]


class _Normalised:
    """The autoencoder, whose latents are patches of 2x2 by the pipeline's own code, normalised."""

    config = SimpleNamespace(shift_factor=0, scaling_factor=1)

    def __init__(self, pipeline: Any) -> None:
        self.vae, self.patches = pipeline.vae, pipeline._patchify_latents

    def encode(self, pixels: Tensor) -> Any:
        found = self.vae.encode(pixels).latent_dist
        mean, variance = (
            value.view(1, -1, 1, 1) for value in (self.vae.bn.running_mean, self.vae.bn.running_var)
        )
        deviation = (variance + self.vae.config.batch_norm_eps) ** 0.5
        return SimpleNamespace(
            latent_dist=SimpleNamespace(
                mean=(self.patches(found.mean) - mean) / deviation,
                std=self.patches(found.std) / deviation,
            )
        )


def shift(tokens: int, steps: int) -> float:
    """Mu of the schedule: a line in the number of steps, through its values at 10 and 200."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_10 + (at_200 - at_10) * (steps - 10) / 190

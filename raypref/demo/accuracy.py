"""Prompt accuracy: whether a picture of the tiny world shows the things its prompt names."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from raypref.core.config import Location, Resources
from raypref.core.rows import Row
from raypref.demo import world
from raypref.demo.photograph import SIZE
from raypref.images.decode import as_image
from raypref.models import hub

if TYPE_CHECKING:
    from torch import Tensor

    from raypref.demo.scene import Thing


class PromptAccuracy:
    """Transform: the share of the prompt's things that are there with shape and colour.

    Judged by a classifier that was trained on the renderer. It knows the tiny world only; a prompt
    without a thing of that world gets no score.
    """

    name = "prompt_accuracy"
    reads: tuple[str, ...] = ("image", "prompt")
    writes = pa.schema([("prompt_accuracy", pa.float32())])
    resources = Resources(batch=32, num_cpus=0.5)

    def __init__(self, weights: Location) -> None:
        self.weights = weights

    def setup(self) -> None:
        """Load the classifier."""
        from safetensors.torch import load_file

        from raypref.demo.critic import Critic

        file = hub.weight_file(self.weights, key="metrics.critic", origin="raypref.demo.train")
        self.critic = Critic().eval().requires_grad_(False)
        self.critic.load_state_dict({k: v.float() for k, v in load_file(file).items()})

    def prepare(self, rows: list[Row]) -> Tensor:
        """The classifier's input, float32 [B, 3, H, W]."""
        import torch

        size = (SIZE, SIZE)  # what the classifier was trained on
        pixels = np.stack([np.asarray(as_image(row["image"]).resize(size)) for row in rows])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1

    def compute(self, batch: Tensor) -> list[list[Thing]]:
        """The things seen in each image."""
        return self.critic.things(batch)

    def finish(self, rows: list[Row], out: list[list[Thing]]) -> None:
        """Fill the column."""
        for row, seen in zip(rows, out, strict=False):
            named = world.things(row["prompt"])
            if named:
                right = (Counter(named) & Counter(seen)).total()
                row["prompt_accuracy"] = right / len(named)

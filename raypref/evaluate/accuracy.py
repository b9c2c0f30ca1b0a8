"""Prompt accuracy: whether a picture of the tiny world shows the things its prompt names."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from raypref import hub
from raypref.config import Location, Resources
from raypref.images import as_image
from raypref.rows import Row
from raypref.tiny import world
from raypref.tiny.photograph import SIZE


class PromptAccuracy:
    """Stage: the share of the prompt's things that are there with shape and colour.

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

        from raypref.tiny.critic import Critic

        file = hub.weight_file(self.weights, key="metrics.critic", origin="raypref.tiny.train")
        self.critic = Critic().eval().requires_grad_(False)
        self.critic.load_state_dict({k: v.float() for k, v in load_file(file).items()})

    def __call__(self, rows: list[Row]) -> None:
        """Fill the column."""
        import torch

        size = (SIZE, SIZE)  # what the classifier was trained on
        pixels = np.stack([np.asarray(as_image(row["image"]).resize(size)) for row in rows])
        x_BCHW = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        for row, seen in zip(rows, self.critic.things(x_BCHW), strict=True):
            named = world.things(row["prompt"])
            if named:
                right = (Counter(named) & Counter(seen)).total()
                row["prompt_accuracy"] = right / len(named)

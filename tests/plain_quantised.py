"""Weights in 8 and 4 bits, and back, written out value by value: no code of the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

# The values of NF4, of the paper's appendix E (QLoRA, arXiv 2305.14314).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def rounded(weight: np.ndarray, kind: str) -> np.ndarray:
    """What is left of a weight, [out, in], of float32 values."""
    return _int8(weight) if kind == "int8" else _nf4(weight)


def _int8(weight: np.ndarray) -> np.ndarray:
    made = np.zeros(weight.shape)
    for number, row in enumerate(weight.astype(np.float64)):
        scale = max(abs(value) for value in row) / 127
        made[number] = [round(value / scale) * scale for value in row]
    return made


def _nf4(weight: np.ndarray) -> np.ndarray:
    values, flat, made = np.array(NF4, dtype=np.float32), weight.astype(np.float32).ravel(), []
    for first in range(0, len(flat), 64):
        block = flat[first : first + 64]
        largest = np.abs(block).max()
        nearest = [values[np.argmin(np.abs(values - value / largest))] for value in block]
        made += [value * largest for value in nearest]
    return np.array(made, dtype=np.float32).reshape(weight.shape).astype(np.float64)


def write(kind: str, pipeline: type, source: str, folder: Path, *, component: str) -> str:
    """A pipeline in float64 whose network's linear layers are rounded so, in diffusers layout.

    Returns:
        The folder.
    """
    made = pipeline.from_pretrained(source, torch_dtype=torch.float64)  # type: ignore[attr-defined]
    for layer in made.components[component].modules():
        if isinstance(layer, nn.Linear):
            weight = rounded(layer.weight.detach().numpy(), kind)
            layer.weight.data = torch.from_numpy(weight)
    made.save_pretrained(folder)
    return str(folder)

"""Where a model runs and how precisely, by the words that settings have for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DType = Literal["float64", "float32", "bfloat16", "float16"]


def torch_dtype(name: DType) -> torch.dtype:
    """Torch's own object for a precision."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def pick_device(num_gpus: float) -> torch.device:
    """The GPU when the stage asks for one and there is one, else the CPU."""
    import torch

    return torch.device("cuda" if num_gpus and torch.cuda.is_available() else "cpu")


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The values on a device, in a precision; a GPU works on while they travel."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.to(dtype).pin_memory()
    return values.to(device, dtype, non_blocking=True)

"""Where a model runs and how precisely, by the words that settings have for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DType = Literal["float64", "float32", "bfloat16", "float16"]
OtherDType = Literal["", "float64", "float32", "bfloat16", "float16"]  # empty: as another setting
Quantisation = Literal["", "int8", "nf4"]  # of frozen linear layers; empty: as precise as the rest


def torch_dtype(name: DType) -> torch.dtype:
    """Torch's own object for a precision."""
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def pick_device(num_gpus: float) -> torch.device:
    """The GPU where one is asked for, else the CPU.

    Raises:
        RuntimeError: one is asked for and cannot be used. A model for a GPU takes days on a CPU.
    """
    import torch

    if not num_gpus:
        return torch.device("cpu")
    if reason := why_no_gpu():
        raise RuntimeError(f"a GPU was asked for and cannot be used here: {reason}")
    return torch.device("cuda")


def why_no_gpu() -> str:
    """Why torch cannot use a GPU in this process, with driver and CUDA; empty where it can."""
    import torch

    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install a build with it"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        said = str(error).partition("\n")[0]
    else:
        said = "no GPU is visible to it"
    driver = _driver_version() or "none found"
    return (
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda}, driver {driver}: {said}"
    )


def _driver_version() -> str:
    """Of NVIDIA's kernel module; empty where it is not loaded."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"Kernel Module\s.*?(\d+\.\d+[.\d]*)", text)
    return found[1] if found else "of unknown version"


def to_device(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The values on a device, in a precision; a GPU works on while they travel."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.to(dtype).pin_memory()
    return values.to(device, dtype, non_blocking=True)

"""What a training pass of a full-size network consists of, counted on the meta device.

Nothing is computed and no memory is taken: every operation that is dispatched and makes a new
tensor counts as a kernel, every tensor that is kept for backward counts with its bytes. Two things
a GPU does differently from the meta device are put in their place: attention is one kernel (flash
attention), and `torch.autocast` converts what CUDA's converts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import full
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from gpu_sections.networks import Inputs, adapter_of
from raypref.align.residuals import LEARNER
from raypref.models import adapters
from raypref.models.families.base import Denoiser
from raypref.models.families.sd3 import SD3Conditioning, SD3Denoiser
from raypref.models.families.sd15 import SD15Conditioning, SD15Denoiser

META = torch.device("meta")
# Operations that make a new tensor and launch nothing.
FREE = {"aten::detach", "aten::_unsafe_view", "aten::empty", "aten::empty_like", "aten::new_empty"}
FREE |= {"aten::empty_strided", "aten::lift_fresh", "aten::alias", "aten::new_empty_strided"}
CAST = "aten::_to_copy"

# CUDA autocast's lists (torch/include/ATen/autocast_mode.h), as far as the networks use them.
LOWER = {F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm}
LOWER |= {Tensor.matmul, Tensor.__matmul__, F.scaled_dot_product_attention}
FLOAT32 = {F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.softmax, torch.softmax}
FLOAT32 |= {Tensor.softmax, torch.exp, torch.pow, Tensor.pow, torch.rsqrt, torch.sum, Tensor.sum}
FLOAT32 |= {Tensor.exp, Tensor.rsqrt, Tensor.__pow__, F.mse_loss}
WIDEST = {torch.cat, torch.stack, torch.addcmul}


class Counts(NamedTuple):
    """Of one pass of a training, one sample."""

    kernels: int  # of the forward
    casts: int  # of these, conversions of precision
    saved: float  # GiB kept for backward, the adapter's conversions included
    forward: float  # TFLOP
    kernels_both: int  # of forward and backward; 0 where only the forward was counted
    backward: float  # TFLOP


def count(name: str, *, backward: bool = False) -> Counts:
    """Count a training pass of the learner at full size, in bfloat16.

    Args:
        name: `sd15` or `sd35m`.
        backward: also of the backward; the slower half.
    """
    denoiser = on_meta(name)
    with counted(denoiser) as passes:
        predicted = denoiser.predict(*_inputs(name))
        kernels, flops = passes.total, passes.flops.get_total_flops()
        casts, saved = passes.kernels[CAST], passes.saved_bytes
        if backward:
            predicted.float().square().mean().backward()
    return Counts(
        kernels,
        casts,
        saved / 2**30,
        flops / 1e12,
        passes.total if backward else 0,
        (passes.flops.get_total_flops() - flops) / 1e12,
    )


def on_meta(name: str) -> Denoiser:
    """A family's denoiser of full size, without weights, with the learner's adapter."""
    kind: Any = {"sd15": SD15Denoiser, "sd35m": SD3Denoiser}[name]
    denoiser: Any = object.__new__(kind)  # not as loaded: there is nothing to load
    (denoiser.module,) = (
        network for place, network in full.networks(name, "full").items() if place == kind.component
    )
    torch.nn.Module.to(denoiser.module, torch.bfloat16).eval()
    denoiser.device, denoiser.dtype = META, torch.bfloat16
    adapters.attach(denoiser.module, adapter_of(name), names=(LEARNER,), seed=0)
    denoiser.module.to(META)
    adapters.activate(denoiser.module, LEARNER, train=True)
    made: Denoiser = denoiser
    return made


def _inputs(name: str) -> Inputs:
    """One sample as a training hands it on: float32, at 512x512."""
    times = torch.zeros(1, device=META)
    if name == "sd35m":
        prompts = SD3Conditioning(
            torch.empty(1, 77 + 256, 4096, device=META),
            torch.empty(1, 2048, device=META),
        )
        return Inputs(torch.empty(1, 16, 64, 64, device=META), times, prompts)
    sequence = torch.empty(1, 77, 768, device=META)
    return Inputs(torch.empty(1, 4, 64, 64, device=META), times, SD15Conditioning(sequence))


# ------------------------------------------------------------------ counters


class Passes(TorchDispatchMode):
    """Counts operations, and the bytes of what autograd keeps.

    Args:
        parameters: kept anyway, so not counted.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.own = {p.untyped_storage()._cdata for p in parameters}
        self.saved: dict[int, Tensor] = {}  # held, so that no number stands for two storages
        self.flops = FlopCounterMode(display=False)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count it, and do it."""
        name = func._schema.name
        if not func.is_view and name not in FREE:
            self.kernels[name] += 1
        return func(*args, **(kwargs or {}))

    def keep(self, tensor: Tensor) -> Tensor:
        """Note what autograd saves."""
        storage = tensor.untyped_storage()._cdata
        if storage not in self.own:
            self.saved[storage] = tensor
        return tensor

    @property
    def total(self) -> int:
        """All kernels."""
        return sum(self.kernels.values())

    @property
    def saved_bytes(self) -> int:
        """Of all storages kept for backward."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.saved.values())


@contextmanager
def counted(denoiser: Denoiser) -> Iterator[Passes]:
    """Count what happens to a denoiser of the meta device."""
    passes = Passes(list(denoiser.module.parameters()))
    hooks = torch.autograd.graph.saved_tensors_hooks(passes.keep, lambda tensor: tensor)
    imitated = patch.object(torch, "autocast", CudaAutocast)
    with imitated, FlashAttention(), hooks, passes.flops, passes:
        yield passes


class FlashAttention(TorchFunctionMode):
    """Attention as one kernel, which keeps its inputs, its output and a number per query."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace scaled dot product attention."""
        if func is F.scaled_dot_product_attention:
            given = args[:3] or [(kwargs or {})[name] for name in ("query", "key", "value")]
            return torch.ops.aten._scaled_dot_product_flash_attention(*given)[0]
        return func(*args, **(kwargs or {}))


class CudaAutocast(TorchFunctionMode):
    """`torch.autocast` as it is on CUDA, for tensors of the meta device."""

    def __init__(
        self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True
    ) -> None:
        super().__init__()
        self.dtype, self.enabled = dtype or torch.bfloat16, enabled

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Convert the arguments as the list says that the function is on."""
        given = (args, dict(kwargs or {}))
        if self.enabled and func in LOWER:
            given = tree_map(lambda value: _cast(value, self.dtype), given)
        elif self.enabled and func in FLOAT32:
            given = tree_map(lambda value: _cast(value, torch.float32), given)
        elif self.enabled and func in WIDEST:
            found: list[torch.dtype] = []
            tree_map(lambda v: found.append(v.dtype) if isinstance(v, Tensor) else None, given)
            widest = torch.float32 if torch.float32 in found else self.dtype
            given = tree_map(lambda value: _cast(value, widest), given)
        return func(*given[0], **given[1])


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of floats in another precision."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype:
        return value.to(dtype)
    return value

"""What a denoiser reads beside noisy latents and timestep: a dataclass of tensors, one per family.

All other code only indexes, stacks, repeats, moves and stores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Frozen columns of the ledger of latents, which every family has: one without the field leaves its
# column empty. Another field has columns of its own: `mask_BL` has `mask` and `mask_shape`.
COLUMNS = {"sequence_BLD": "embedding", "pooled_BP": "pooled"}
FLAT = "pooled"  # a vector, stored without its shape


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of B samples; of one sample, without the leading B, if indexed by a number.

    A family's subclass names its fields, each with its dimensions: `sequence_BLD: Tensor`. All are
    tensors of floats (a mask is 1 and 0), of one shape for all samples: texts are padded. What
    follows from the latents' shape, such as position ids, is no field: `Denoiser.predict` makes it.

    `len(c)`, `c[2]`, `c[:2]` and `c[[3, 1]]` do what they do to a tensor's first dimension.
    """

    def __len__(self) -> int:
        return len(_tensors(self)[0])

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Self:
        return _each(self, lambda tensor: tensor[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same elsewhere or in another precision."""
        return _each(self, lambda tensor: tensor.to(device, dtype))


C = TypeVar("C", bound=Conditioning)


def stack(singles: Sequence[C]) -> C:
    """Single samples to a batch."""
    import torch

    columns = zip(*map(_tensors, singles), strict=True)
    return type(singles[0])(*(torch.stack(column) for column in columns))


def twice(batch: C) -> C:
    """The batch and after it the batch again, for two images with one caption."""
    return _each(batch, lambda tensor: tensor.repeat(2, *[1] * (tensor.dim() - 1)))


def room_for(single: C, count: int) -> C:
    """A batch of `count` samples shaped as a single one, to be filled with `put`."""
    return _each(single, lambda tensor: tensor.new_empty((count, *tensor.shape)))


def put(batch: C, position: int, single: C) -> None:
    """Overwrite one sample of a batch, in place."""
    for target, value in zip(_tensors(batch), _tensors(single), strict=True):
        target[position] = value


def _tensors(conditioning: Conditioning) -> list[Tensor]:
    return [getattr(conditioning, field.name) for field in fields(conditioning)]


def _each(conditioning: C, change: Callable[[Tensor], Tensor]) -> C:
    return type(conditioning)(*map(change, _tensors(conditioning)))


# ------------------------------------------------------------------ in the ledger of latents


def schema(kind: type[Conditioning]) -> pa.Schema:
    """The columns that hold one sample."""
    columns: list[tuple[str, pa.DataType]] = []
    for name in dict.fromkeys([*COLUMNS.values(), *_columns(kind)]):
        columns.append((name, pa.binary()))
        if name != FLAT:
            columns.append((f"{name}_shape", pa.list_(pa.int64())))
    return pa.schema(columns)


def to_row(single: Conditioning) -> dict[str, Any]:
    """The values of one sample's columns: float32 bytes, and shapes."""
    row: dict[str, Any] = {FLAT: b""}
    for name, tensor in zip(_columns(type(single)), _tensors(single), strict=True):
        row[name], shape = packed(tensor)
        if name != FLAT:
            row[f"{name}_shape"] = shape
    return row


def from_row(kind: type[C], row: Mapping[str, Any]) -> C:
    """One sample from the values of its columns."""
    return kind(*(unpacked(row[name], row.get(f"{name}_shape", [-1])) for name in _columns(kind)))


def _columns(kind: type[Conditioning]) -> list[str]:
    """Each field's column."""
    return [COLUMNS.get(f.name, f.name.rpartition("_")[0]) for f in fields(kind)]


def packed(values: Tensor) -> tuple[bytes, list[int]]:
    """A tensor as float32 bytes, and its shape."""
    return values.float().cpu().numpy().tobytes(), list(values.shape)


def unpacked(data: bytes, shape: Sequence[int]) -> Tensor:
    """The tensor that `packed` was given, in float32."""
    import torch

    values = np.frombuffer(data, dtype=np.float32).copy()
    return torch.from_numpy(values).reshape(tuple(shape))

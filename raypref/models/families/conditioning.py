"""What a denoiser reads beside noisy latents and timestep: a dataclass of tensors, one per family.

All other code only indexes, stacks, repeats, moves and stores it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
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

    `surroundings_BKHW` is of images, not of captions: an inpainting member's mask and the latents
    around it, its own channels. Text encoders leave it out; `PairData` keeps and adds it.

    `len(c)`, `c[2]`, `c[:2]` and `c[[3, 1]]` do what they do to a tensor's first dimension.
    """

    surroundings_BKHW: Tensor | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(next(iter(_tensors(self).values())))

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Self:
        return _each(self, lambda tensor: tensor[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same elsewhere or in another precision."""
        return _each(self, lambda tensor: tensor.to(device, dtype))


C = TypeVar("C", bound=Conditioning)


def stack(singles: Sequence[C]) -> C:
    """Single samples to a batch."""
    import torch

    named = [_tensors(single) for single in singles]
    assert all(tensors.keys() == named[0].keys() for tensors in named)
    return type(singles[0])(**{k: torch.stack([each[k] for each in named]) for k in named[0]})


def twice(batch: C) -> C:
    """The batch and after it the batch again, for two images with one caption."""
    return _each(batch, lambda tensor: tensor.repeat(2, *[1] * (tensor.dim() - 1)))


def room_for(single: C, count: int) -> C:
    """A batch of `count` samples shaped as a single one, to be filled with `put`."""
    return _each(single, lambda tensor: tensor.new_empty((count, *tensor.shape)))


def put(batch: C, position: int, single: C) -> None:
    """Overwrite one sample of a batch, in place."""
    values = _tensors(single)
    for name, target in _tensors(batch).items():
        target[position] = values[name]


def _tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    """The fields that are there."""
    named = {f.name: getattr(conditioning, f.name) for f in fields(conditioning)}
    return {name: value for name, value in named.items() if value is not None}


def _each(conditioning: C, change: Callable[[Tensor], Tensor]) -> C:
    changed = {name: change(tensor) for name, tensor in _tensors(conditioning).items()}
    return replace(conditioning, **changed)


# ------------------------------------------------------------------ in the ledger of latents


def schema(kind: type[Conditioning]) -> pa.Schema:
    """The columns that hold one caption."""
    columns: list[tuple[str, pa.DataType]] = []
    for name in dict.fromkeys([*COLUMNS.values(), *_columns(kind).values()]):
        columns.append((name, pa.binary()))
        if name != FLAT:
            columns.append((f"{name}_shape", pa.list_(pa.int64())))
    return pa.schema(columns)


def to_row(single: Conditioning) -> dict[str, Any]:
    """The values of one caption's columns: float32 bytes, and shapes."""
    row: dict[str, Any] = {FLAT: b""}
    for field_name, name in _columns(type(single)).items():
        row[name], shape = packed(getattr(single, field_name))
        if name != FLAT:
            row[f"{name}_shape"] = shape
    return row


def from_row(kind: type[C], row: Mapping[str, Any]) -> C:
    """One caption from the values of its columns."""
    return kind(
        **{
            field_name: unpacked(row[name], row.get(f"{name}_shape", [-1]))
            for field_name, name in _columns(kind).items()
        }
    )


def _columns(kind: type[Conditioning]) -> dict[str, str]:
    """The column of each field that is a caption's."""
    names = [f.name for f in fields(kind) if f.name != "surroundings_BKHW"]
    return {name: COLUMNS.get(name, name.rpartition("_")[0]) for name in names}


def packed(values: Tensor) -> tuple[bytes, list[int]]:
    """A tensor as float32 bytes, and its shape."""
    return values.float().cpu().numpy().tobytes(), list(values.shape)


def unpacked(data: bytes, shape: Sequence[int]) -> Tensor:
    """The tensor that `packed` was given, in float32."""
    import torch

    values = np.frombuffer(data, dtype=np.float32).copy()
    return torch.from_numpy(values).reshape(tuple(shape))

"""What all code does with a family's conditioning, of a family that nothing else knows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from raypref.models.families.conditioning import (
    Conditioning,
    from_row,
    put,
    room_for,
    schema,
    stack,
    to_row,
    twice,
)
from raypref.models.families.sd3 import SD3Conditioning
from raypref.models.families.sd15 import SD15Conditioning


@dataclass(frozen=True)
class Masked(Conditioning):
    """As a family with padded texts and a guidance embedding might have it."""

    sequence_BLD: Tensor
    text_mask_BL: Tensor
    scale_B: Tensor


def masked(count: int) -> Masked:
    numbers = torch.arange(count * 6, dtype=torch.float32).view(count, 3, 2)
    return Masked(numbers, (numbers[..., 0] > 2).float(), numbers[:, 0, 0] / 4)


def painted(batch: Masked) -> Masked:
    """The same, of samples that are to be painted."""
    around = torch.arange(len(batch) * 4, dtype=torch.float32).view(len(batch), 1, 2, 2)
    return replace(batch, surroundings_BKHW=around)


def tensors(conditioning: Conditioning) -> dict[str, Tensor]:
    return {name: value for name, value in vars(conditioning).items() if value is not None}


def same(ours: Conditioning, theirs: Conditioning) -> bool:
    assert type(ours) is type(theirs)
    a, b = tensors(ours), tensors(theirs)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_indexes_as_the_first_dimension_of_a_tensor_does() -> None:
    batch = masked(5)
    assert len(batch) == 5
    for index in (
        2,
        slice(1, 3),
        [4, 0],
        torch.tensor([3, 3]),
        torch.tensor([True, False] * 2 + [True]),
    ):
        wanted = Masked(batch.sequence_BLD[index], batch.text_mask_BL[index], batch.scale_B[index])
        assert same(batch[index], wanted)
    assert batch[2].scale_B.shape == ()
    around = painted(batch)[[4, 0]].surroundings_BKHW
    assert around is not None
    assert around[:, 0, 0, 0].tolist() == [16, 0]


@pytest.mark.parametrize("batch", [masked(3), painted(masked(3))])
def test_singles_make_a_batch_and_a_batch_can_follow_itself(batch: Masked) -> None:
    assert same(stack([batch[i] for i in range(3)]), batch)
    assert same(twice(batch), batch[[0, 1, 2, 0, 1, 2]])
    filled = room_for(batch[0], 3)
    for position in (2, 0, 1):
        put(filled, position, batch[position])
    assert same(filled, batch)


def test_every_field_moves_and_is_cast() -> None:
    moved = painted(masked(2)).to(torch.device("meta"), torch.float64)
    assert {(t.device.type, t.dtype) for t in tensors(moved).values()} == {("meta", torch.float64)}


def test_what_is_stored_comes_back() -> None:
    batch = masked(3)
    table = pa.Table.from_pylist([to_row(batch[i]) for i in range(3)], schema=schema(Masked))
    assert same(stack([from_row(Masked, row) for row in table.to_pylist()]), batch)
    assert table["text_mask_shape"].to_pylist() == [[3]] * 3
    assert table["scale_shape"].to_pylist() == [[]] * 3


def test_the_columns_of_the_first_two_families_are_frozen() -> None:
    columns = [("embedding", pa.binary()), ("embedding_shape", pa.list_(pa.int64()))]
    columns += [("pooled", pa.binary())]
    assert schema(SD15Conditioning) == schema(SD3Conditioning) == pa.schema(columns)
    sequence, pooled = np.float32([[1, 2], [3, 4.5]]), np.float32([5, 6])
    text = {"embedding": sequence.tobytes(), "embedding_shape": [2, 2]}
    one = SD15Conditioning(torch.from_numpy(sequence).bfloat16())
    assert to_row(one) == text | {"pooled": b""}
    both = SD3Conditioning(torch.from_numpy(sequence).double(), torch.from_numpy(pooled))
    assert to_row(both) == text | {"pooled": pooled.tobytes()}

"""A caption as a denoiser reads it: a sequence of vectors, and a pooled one where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Embeddings of B captions; of a single one, without the leading B, when indexed by a number.

    Indexes like a tensor's first dimension.
    """

    sequence_BLD: Tensor
    pooled_BP: Tensor  # P is 0 in a family that reads none

    def __len__(self) -> int:
        return len(self.sequence_BLD)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Prompts:
        return Prompts(self.sequence_BLD[index], self.pooled_BP[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> Prompts:
        """The same embeddings elsewhere or in another precision."""
        return Prompts(self.sequence_BLD.to(device, dtype), self.pooled_BP.to(device, dtype))


def stack(prompts: Sequence[Prompts]) -> Prompts:
    """Single captions to a batch."""
    import torch

    return Prompts(
        torch.stack([p.sequence_BLD for p in prompts]), torch.stack([p.pooled_BP for p in prompts])
    )


def twice(prompts: Prompts) -> Prompts:
    """The batch and after it the batch again, for two images with one caption."""
    return Prompts(prompts.sequence_BLD.repeat(2, 1, 1), prompts.pooled_BP.repeat(2, 1))

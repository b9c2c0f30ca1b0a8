"""All weights of a network, for full fine-tuning: its parameters read from one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

ALIGNED = 32  # elements: each parameter begins where kernels read fastest, as one of its own does


class OwnWeights:
    """The parameters of one network; a vector holds one after another, with zeros between.

    All parameters are trained. Buffers, such as SD-3's table of positions, stay as they are.

    Args:
        module: a diffusers denoiser.
    """

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        self.keys = tuple(named)
        self.parameters = [*named.values()]
        self.base = [parameter.data for parameter in self.parameters]  # as loaded
        # Of the vector that is trained. The hooks know this list alone: a cycle with the
        # parameters would keep a network that is done with in memory.
        self.gradients: list[Tensor] = []
        for number, parameter in enumerate(self.parameters):
            parameter.requires_grad_(True)
            parameter.register_post_accumulate_grad_hook(partial(_collect, self.gradients, number))
        module.requires_grad_(False)

    def initial(self) -> Tensor:
        """The weights as they were loaded, [P], float32 or better."""
        return self.joined(self.base)

    def split(self, vector_P: Tensor) -> list[Tensor]:
        """The parameters as views, each in the memory format of the network's own."""
        return parameters_in(vector_P, self.base)

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The vector that `split` would split into these, in float32 or better."""
        first = self.base[0]
        precise = torch.promote_types(first.dtype, torch.float32)
        vector_P = torch.zeros(vector_length(self.base), dtype=precise, device=first.device)
        for view, part in zip(self.split(vector_P), parts, strict=True):
            view.copy_(part)
        return vector_P

    def use(self, vector_P: Tensor | None) -> None:
        """Let the network read a vector, rounded to its own precision; None: what was loaded.

        Where the vector requires a gradient, that of every backward is added to its `grad` in the
        vector's precision, parameter by parameter as backward comes to them.
        """
        train = vector_P is not None and vector_P.requires_grad
        pieces = self.base if vector_P is None else self.split(vector_P.detach())
        for parameter, own, piece in zip(self.parameters, self.base, pieces, strict=True):
            parameter.data = piece.to(own.dtype)
            parameter.requires_grad_(train)
        self.gradients.clear()
        if train:
            assert vector_P is not None
            if vector_P.grad is None:
                vector_P.grad = torch.zeros_like(vector_P)
            self.gradients.extend(self.split(vector_P.grad))

    def norm(self, vector_P: Tensor) -> Tensor:
        """Frobenius norm of a vector's difference from the weights that were loaded."""
        pairs = zip(self.split(vector_P), self.base, strict=True)
        return torch.stack([(view - own).square().sum() for view, own in pairs]).sum().sqrt()


def vector_length(like: Sequence[Tensor]) -> int:
    """P, how long the vector of these parameters is."""
    return sum(_sizes(like))


def parameters_in(vector_P: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parameters in a vector, as views.

    Args:
        vector_P: one after another.
        like: tensors of the parameters' shapes and memory formats; their values are not read.
    """
    return [
        piece.as_strided(own.shape, _strides(own), piece.storage_offset())
        for piece, own in zip(vector_P.split(_sizes(like)), like, strict=True)
    ]


def _sizes(like: Sequence[Tensor]) -> list[int]:
    return [-(-own.numel() // ALIGNED) * ALIGNED for own in like]


def _strides(own: Tensor) -> tuple[int, ...]:
    """Those of a tensor without gaps, in its memory format where that is a common one."""
    if own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last):
        return own.stride()
    return own.contiguous().stride()


def _collect(gradients: Sequence[Tensor], number: int, parameter: Tensor) -> None:
    """Add a parameter's gradient to its part of the vector's."""
    assert parameter.grad is not None
    gradients[number].add_(parameter.grad)
    parameter.grad = None

"""LoRA layers of a network: A and B of every adapted linear layer, read from one flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypref.core.rows import seed_of
from raypref.models.lora_config import LoraConfig
from raypref.models.quantised import QuantisedLinear


class _Layer(NamedTuple):
    """A linear layer with an adapter."""

    name: str
    a: tuple[int, int]  # shape of A, (rank, in)
    b: tuple[int, int]  # shape of B, (out, rank)


class _Adapted(nn.Linear):
    """A linear layer that adds scale * B A x to what it computes.

    All of a network are of this one class, or of `_AdaptedQuantised`, without hooks: a compiled
    block then holds for every block of its shape, whatever adapter is in use.
    """

    adapter_scale: float
    adapter_a: Tensor | None  # as the forward reads it; None: nothing is added
    adapter_b: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the adapter in use."""
        output = super().forward(x)
        if self.adapter_a is None or self.adapter_b is None:
            return output
        added = F.linear(F.linear(x, self.adapter_a), self.adapter_b)
        return output + added * self.adapter_scale


class _AdaptedQuantised(_Adapted, QuantisedLinear):
    """The same of a layer whose weight is stored in fewer bits."""


class LoraLayers:
    """The adapted layers of one network; a vector holds A and B of one after another.

    A is Gaussian with std 1/rank, B zero, so the network computes what it did before. The draw
    depends on `seed` alone: not on precision, device or the global random state.

    Args:
        module: a diffusers denoiser; its own weights are frozen.
        config: shape of the adapters; every layer it names is linear (`checks.check_adapter`).
        seed: seed of the initial values.
    """

    def __init__(self, module: nn.Module, config: LoraConfig, *, seed: int) -> None:
        module.requires_grad_(False)
        found = [
            (name, layer)
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear)
            and any(f".{name}".endswith(f".{target}") for target in config.targets)
        ]
        self.rank, self.seed, self.scale = config.rank, seed, config.alpha / config.rank
        weight = found[0][1].weight
        self.dtype, self.device = weight.dtype, weight.device
        self.layers = [
            _Layer(name, (config.rank, own.in_features), (own.out_features, config.rank))
            for name, own in found
        ]
        self.modules = [_adapted(layer, self.scale) for _, layer in found]
        self.keys = tuple(
            f"{layer.name}.lora_{part}.weight" for layer in self.layers for part in "AB"
        )

    def initial(self) -> Tensor:
        """The values that add nothing, [P], float32 or better."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, "lora"))
        values = [
            part.flatten()
            for layer in self.layers
            for part in (
                torch.randn(layer.a, generator=generator) / self.rank,
                torch.zeros(layer.b),
            )
        ]
        return torch.cat(values).to(self.device, torch.promote_types(self.dtype, torch.float32))

    def split(self, vector_P: Tensor) -> list[Tensor]:
        """A and B of every layer as views."""
        shapes = [shape for layer in self.layers for shape in (layer.a, layer.b)]
        pieces = vector_P.split([rows * columns for rows, columns in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The vector that `split` would split into these."""
        return torch.cat([part.flatten() for part in parts])

    def use(self, vector_P: Tensor | None) -> None:
        """Let the layers read A and B of a vector, or add nothing.

        Gradients flow to the vector where it requires them.
        """
        if vector_P is None:
            pieces: list[Tensor | None] = [None] * (2 * len(self.modules))
        else:
            pieces = [*self.split(vector_P.to(self.dtype))]
        for module, a, b in zip(self.modules, pieces[::2], pieces[1::2], strict=True):
            module.adapter_a, module.adapter_b = a, b

    def norm(self, vector_P: Tensor) -> Tensor:
        """Frobenius norm of what a vector adds to the weights, scale * B A, over all layers."""
        squares, parts = [], self.split(vector_P)
        for a, b in zip(parts[::2], parts[1::2], strict=True):
            # |B A|^2 = <B'B, AA'>: products of rank x rank, not of the layer's size.
            squares.append(((b.T @ b) * (a @ a.T)).sum())
        return self.scale * torch.stack(squares).sum().clamp(min=0).sqrt()


def _adapted(layer: nn.Linear, scale: float) -> _Adapted:
    """The same layer, able to add an adapter's part: names and weights stay as they are."""
    own = type(layer)
    known = (nn.Linear, QuantisedLinear, _Adapted, _AdaptedQuantised)
    assert own in known, f"{own.__name__} has a forward of its own"
    layer.__class__ = _AdaptedQuantised if isinstance(layer, QuantisedLinear) else _Adapted
    assert isinstance(layer, _Adapted)
    layer.adapter_scale = scale
    return layer

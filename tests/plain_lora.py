"""LoRA written out plainly, as two matrices beside a linear layer; random numbers by name."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def seeded(*parts: object) -> torch.Generator:
    """The documented source of randomness: sha256 of the parts, 63 bits of it."""
    digest = hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class LoraLinear(nn.Module):
    """A linear layer and, beside it, two matrices."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.down = nn.Parameter(torch.zeros(rank, base.in_features, dtype=torch.float64))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.down.T @ self.up.T)


def with_lora(
    network: nn.Module, targets: tuple[str, ...], *, rank: int, alpha: float, seed: int
) -> dict[str, LoraLinear]:
    """Put LoRA on the layers of these names; down is Gaussian with deviation 1/rank."""
    network.requires_grad_(False).eval()
    wanted = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and any(name.endswith(f".{t}") for t in targets)
    ]
    generator, layers = seeded(seed, "lora"), {}
    for name in wanted:
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(network.get_submodule(name), rank=rank, alpha=alpha)  # type: ignore[arg-type]
        setattr(network.get_submodule(parent), last, layer)
        layers[name] = layer
    for layer in layers.values():
        layer.down.data = (torch.randn(layer.down.shape, generator=generator) / rank).double()
    return layers

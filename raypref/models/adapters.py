"""LoRA adapters of a network in training: each one flat vector, one of them in use at a time.

Learner, reference and policy differ by a few million numbers, so the network exists once.
Optimizer, moving average, clipping and the sum over the ranks each handle one vector. A network of
bfloat16 weights computes its adapter in bfloat16 too, from vectors kept in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypref.core.rows import seed_of
from raypref.models.lora_config import LoraConfig


class _Layer(NamedTuple):
    """A linear layer with an adapter."""

    name: str
    a: tuple[int, int]  # shape of A, (rank, in)
    b: tuple[int, int]  # shape of B, (out, rank)


class _Slot:
    """The adapters of one network.

    Args:
        layers: those with an adapter; a vector holds A and B of one after another.
        dtype: in which the network computes.
    """

    def __init__(self, layers: list[_Layer], dtype: torch.dtype) -> None:
        self.layers = layers
        self.dtype = dtype
        self.vectors: dict[str, nn.Parameter] = {}
        self.silent: set[str] = set()  # those whose B is 0: they add nothing
        self.active = ""
        self.used: list[Tensor] = []  # A and B of each layer as the forward reads them; or none

    def split(self, vector: Tensor) -> list[Tensor]:
        """A and B of every layer as views."""
        shapes = [shape for layer in self.layers for shape in (layer.a, layer.b)]
        pieces = vector.split([rows * columns for rows, columns in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


_slots: WeakKeyDictionary[nn.Module, _Slot] = WeakKeyDictionary()


def attach(module: nn.Module, config: LoraConfig, *, names: tuple[str, ...], seed: int) -> None:
    """Add equal adapters to a module and freeze everything else.

    A is Gaussian with std 1/rank, B zero, so the module computes what it did before. The draw
    depends on `seed` alone: not on precision, device or the global random state.

    Args:
        module: a diffusers denoiser; its own weights are frozen.
        config: shape of the adapters; every layer it names is linear (`checks.check_adapter`).
        names: adapter names; all hold the same values. The first is in use.
        seed: seed of the initial values.
    """
    module.requires_grad_(False)
    found = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
        and any(f".{name}".endswith(f".{target}") for target in config.targets)
    ]
    rank, weight = config.rank, found[0][1].weight
    slot = _Slot(
        [_Layer(name, (rank, own.in_features), (own.out_features, rank)) for name, own in found],
        weight.dtype,
    )
    generator = torch.Generator().manual_seed(seed_of(seed, "lora"))
    values = [
        part.flatten()
        for layer in slot.layers
        for part in (torch.randn(layer.a, generator=generator) / rank, torch.zeros(layer.b))
    ]
    precise = torch.promote_types(weight.dtype, torch.float32)
    for name in names:
        slot.vectors[name] = nn.Parameter(torch.cat(values).to(weight.device, precise))
    slot.silent = {*names}
    for number, (_, layer) in enumerate(found):
        layer.register_forward_hook(_adds(slot, number, config.alpha / rank))
    _slots[module] = slot
    activate(module, names[0])


def _adds(slot: _Slot, number: int, scale: float) -> Callable[..., Tensor | None]:
    """Adds scale * B A x to what a layer computes."""
    place = 2 * number

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not slot.used:
            return None
        a, b = slot.used[place], slot.used[place + 1]
        return output + F.linear(F.linear(inputs[0], a), b) * scale

    return hook


def activate(module: nn.Module, name: str, *, train: bool = False) -> None:
    """Make one adapter the active one; only `train=True` makes it collect gradients.

    Between a forward that collects them and its backward no other may be made active.
    """
    slot = _slots[module]
    slot.active = name
    if train:
        slot.silent.discard(name)
    elif name in slot.silent:
        slot.used = []
        return
    vector = slot.vectors[name] if train else slot.vectors[name].detach()
    slot.used = slot.split(vector.to(slot.dtype))


def vector(module: nn.Module, name: str) -> nn.Parameter:
    """All values of an adapter, [P], float32 or better; written to only where it is trained."""
    return _slots[module].vectors[name]


def matrices(module: nn.Module, name: str) -> list[Tensor]:
    """An adapter's A and B, layer by layer: views of its vector, to be read."""
    slot = _slots[module]
    return slot.split(slot.vectors[name].detach())


def fill(module: nn.Module, name: str, values_P: Tensor) -> None:
    """Overwrite an adapter's values."""
    slot = _slots[module]
    with torch.no_grad():
        slot.vectors[name].copy_(values_P)
    slot.silent.discard(name)
    if name == slot.active:
        activate(module, name)


def copy(module: nn.Module, source: str, target: str) -> None:
    """Overwrite one adapter's values with another's."""
    slot = _slots[module]
    silent = source in slot.silent
    fill(module, target, slot.vectors[source])
    if silent:
        slot.silent.add(target)


def blend(module: nn.Module, source: str, target: str, *, keep: float) -> None:
    """Move one adapter's values towards another's: `keep` of its own, the rest from `source`."""
    vectors = _slots[module].vectors
    fill(module, target, vectors[target].detach().lerp(vectors[source].detach(), 1 - keep))


def state(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's values by peft's key, without the adapter's name."""
    return dict(zip(_keys(_slots[module]), matrices(module, name), strict=True))


def set_state(module: nn.Module, name: str, values: Mapping[str, Tensor]) -> None:
    """Overwrite an adapter with values by peft's key, one for each of `state`."""
    slot = _slots[module]
    fill(module, name, torch.cat([values[key].flatten() for key in _keys(slot)]))


def _keys(slot: _Slot) -> Iterator[str]:
    for layer in slot.layers:
        yield f"{layer.name}.lora_A.weight"
        yield f"{layer.name}.lora_B.weight"

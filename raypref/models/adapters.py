"""Variants of a network in training: each one flat vector, one of them in use at a time.

A vector holds the LoRA layers' values (`lora_layers.py`), or with rank 0 all weights of the network
(`own_weights.py`), or one rank's part of them (`sharded_weights.py`). Learner, reference and policy
are vectors, so the network exists once, and optimizer, moving average, clipping and the sum over
the ranks each handle one vector. A network of bfloat16 weights computes in bfloat16, from vectors
kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from raypref.models.lora_config import LoraConfig
from raypref.models.lora_layers import LoraLayers
from raypref.models.own_weights import OwnWeights

if TYPE_CHECKING:
    from raypref.models.sharded_weights import ShardedWeights


class _Weights(Protocol):
    """What a vector stands for in a network."""

    keys: tuple[str, ...]

    def initial(self) -> Tensor:
        """The vector with which the network computes what it did before, [P]."""

    def split(self, vector_P: Tensor) -> list[Tensor]:
        """Its parts as views, one per key; where ranks share it, those of a whole vector."""

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """The vector of such parts."""

    def use(self, vector_P: Tensor | None) -> None:
        """Let the network read a vector; None: it computes what it did before."""

    def norm(self, vector_P: Tensor) -> Tensor:
        """How far a vector takes the weights from those that were loaded."""


class _Slot:
    """The adapters of one network.

    Args:
        weights: what their vectors stand for.
        names: of the adapters.
        sharded: the weights once more, where each rank has a part of them.
    """

    def __init__(
        self, weights: _Weights, names: Sequence[str], sharded: ShardedWeights | None = None
    ) -> None:
        self.weights = weights
        self.sharded = sharded
        self.vectors: dict[str, nn.Parameter] = {}  # made when first asked for
        self.silent = {*names}  # those as they were attached: they change nothing
        self.names = {*names}
        self.active = ""

    def vector(self, name: str) -> nn.Parameter:
        """The vector of an adapter."""
        if name not in self.vectors:
            if name not in self.names:
                raise KeyError(name)
            self.vectors[name] = nn.Parameter(self.weights.initial())
        return self.vectors[name]


_slots: WeakKeyDictionary[nn.Module, _Slot] = WeakKeyDictionary()


def attach(
    module: nn.Module,
    config: LoraConfig,
    *,
    names: tuple[str, ...],
    seed: int,
    sharded: bool = False,
) -> None:
    """Add equal adapters to a module, which computes what it did before.

    Args:
        module: a diffusers denoiser. With a LoRA its own weights are frozen.
        config: shape of the LoRA; with rank 0 an adapter is all weights of the module.
        names: adapter names; all hold the same values. The first is in use.
        seed: seed of a LoRA's initial values.
        sharded: with rank 0, each rank of the default process group has a part of every adapter.
    """
    if sharded:
        from raypref.models.sharded_weights import ShardedWeights

        assert not config.rank, "a LoRA is small: it is not sharded"
        parts = ShardedWeights(module)
        _slots[module] = _Slot(parts, names, parts)
    else:
        weights = LoraLayers(module, config, seed=seed) if config.rank else OwnWeights(module)
        _slots[module] = _Slot(weights, names)
    activate(module, names[0])


def activate(module: nn.Module, name: str, *, train: bool = False) -> None:
    """Make one adapter the active one; only `train=True` makes it collect gradients.

    Between a forward that collects them and its backward no other may be made active.
    """
    slot = _slots[module]
    slot.active = name
    if train:
        slot.silent.discard(name)
    elif name in slot.silent:
        slot.weights.use(None)
        return
    slot.weights.use(slot.vector(name) if train else slot.vector(name).detach())


def vector(module: nn.Module, name: str) -> nn.Parameter:
    """All values of an adapter, [P], float32 or better; written to only where it is trained.

    Sharded, those that this rank has.
    """
    return _slots[module].vector(name)


def matrices(module: nn.Module, name: str) -> list[Tensor]:
    """An adapter's A and B, layer by layer, or its weights: views of its vector, to be read."""
    slot = _slots[module]
    return slot.weights.split(slot.vector(name).detach())


def whole(module: nn.Module, vector_P: Tensor) -> Tensor:
    """A vector with what other ranks have of it, where it is sharded; all have to ask for it.

    Then it is on the host, and on rank 0 alone.
    """
    sharded = _slots[module].sharded
    return vector_P if sharded is None else sharded.whole(vector_P)


def own(module: nn.Module, vector_P: Tensor) -> Tensor:
    """What this rank has of a whole vector."""
    sharded = _slots[module].sharded
    return vector_P if sharded is None else sharded.own(vector_P)


def update_norm(module: nn.Module, name: str) -> Tensor:
    """Frobenius norm of what an adapter changes of the weights, over all layers; a scalar."""
    slot = _slots[module]
    return slot.weights.norm(slot.vector(name).detach())


def fill(module: nn.Module, name: str, values_P: Tensor) -> None:
    """Overwrite an adapter's values."""
    slot = _slots[module]
    with torch.no_grad():
        slot.vector(name).copy_(values_P)
    slot.silent.discard(name)
    if name == slot.active:
        activate(module, name)


def copy(module: nn.Module, source: str, target: str) -> None:
    """Overwrite one adapter's values with another's."""
    slot = _slots[module]
    if {source, target} <= slot.silent:
        return
    silent = source in slot.silent
    fill(module, target, slot.vector(source))
    if silent:
        slot.silent.add(target)


def blend(module: nn.Module, source: str, target: str, *, keep: float) -> None:
    """Move one adapter's values towards another's: `keep` of its own, the rest from `source`."""
    slot = _slots[module]
    fill(module, target, slot.vector(target).detach().lerp(slot.vector(source).detach(), 1 - keep))


def state(module: nn.Module, name: str) -> dict[str, Tensor]:
    """The adapter's values by peft's key, without the adapter's name; weights by their own."""
    return state_of(module, vector(module, name))


def state_of(module: nn.Module, vector_P: Tensor) -> dict[str, Tensor]:
    """The same of a whole vector that is no adapter's, as of a moving average."""
    weights = _slots[module].weights
    return dict(zip(weights.keys, weights.split(vector_P.detach()), strict=True))


def set_state(module: nn.Module, name: str, values: Mapping[str, Tensor]) -> None:
    """Overwrite an adapter with values by key, one for each of `state`."""
    weights = _slots[module].weights
    fill(module, name, weights.joined([values[key] for key in weights.keys]))

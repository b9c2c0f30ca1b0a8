"""Compiled blocks: only the repeated parts of a network, of which one graph serves many.

`torch.compile` of a whole UNet takes minutes per shape of a batch. Its blocks are of few shapes:
all of one shape share a graph, and so do adapters that are switched on them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Classes in diffusers, beside those that a network names itself as `_repeated_blocks`.
BLOCKS = ("BasicTransformerBlock", "JointTransformerBlock", "ResnetBlock2D")
# All blocks of a class are one function to Dynamo. It compiles that per width, with and without
# gradient and adapter, and again for batches of several sizes; past 8 it would run eagerly.
GRAPHS = 128


def compile_blocks(
    network: nn.Module, *, kinds: Collection[str] | None = None, **options: Any
) -> int:
    """Have a network's blocks compiled when they first run; one without any, as a whole.

    Args:
        network: a UNet or transformer of diffusers; names and weights stay as they are.
        kinds: names of the blocks' classes; None: all that are known to repeat.
        **options: of `torch.compile`.

    Returns:
        How many blocks there are.
    """
    import torch

    blocks = repeated_blocks(network, kinds=kinds)
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options.setdefault("recompile_limit", GRAPHS)
    else:  # torch before 2.13
        torch._dynamo.config.recompile_limit = GRAPHS
    for part in blocks or [network]:
        part.compile(**options)
    return len(blocks)


def repeated_blocks(network: nn.Module, *, kinds: Collection[str] | None = None) -> list[nn.Module]:
    """A network's repeated blocks, none within another.

    Args:
        network: a UNet or transformer of diffusers.
        kinds: as in `compile_blocks`.
    """
    if kinds is None:
        kinds = {*BLOCKS, *(getattr(network, "_repeated_blocks", None) or ())}
    return [part for part in network.modules() if type(part).__name__ in kinds]

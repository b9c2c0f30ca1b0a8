"""State dicts of U2-Net with the official names and shapes, generated independently."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from raypref.models.u2net import DECODERS, STAGES, U2Net

NARROW = dict.fromkeys((*STAGES, *DECODERS), (2, 4))


def rebnconv(name: str, channels_in: int, channels_out: int) -> Iterator[tuple[str, tuple]]:
    """Names and shapes of one convolution with its batch norm, as the checkpoints have them."""
    yield f"{name}.conv_s1.weight", (channels_out, channels_in, 3, 3)
    for leaf in ("conv_s1.bias", *(f"bn_s1.{x}" for x in BATCH_NORM)):
        yield f"{name}.{leaf}", (channels_out,)
    yield f"{name}.bn_s1.num_batches_tracked", ()


BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def rsu(name: str, levels: int, inp: int, mid: int, out: int) -> Iterator[tuple[str, tuple]]:
    yield from rebnconv(f"{name}.rebnconvin", inp, out)
    yield from rebnconv(f"{name}.rebnconv1", out, mid)
    for i in range(2, levels + 1):
        yield from rebnconv(f"{name}.rebnconv{i}", mid, mid)
    for i in range(levels - 1, 1, -1):
        yield from rebnconv(f"{name}.rebnconv{i}d", 2 * mid, mid)
    yield from rebnconv(f"{name}.rebnconv1d", 2 * mid, out)


def published(size: str) -> dict[str, tuple]:
    """All 798 names and shapes of the official networks, from their published layout."""
    full = [
        ("stage1", 7, 3, 32, 64),
        ("stage2", 6, 64, 32, 128),
        ("stage3", 5, 128, 64, 256),
        ("stage4", 4, 256, 128, 512),
        ("stage5", 4, 512, 256, 512),
        ("stage6", 4, 512, 256, 512),
        ("stage5d", 4, 1024, 256, 512),
        ("stage4d", 4, 1024, 128, 256),
        ("stage3d", 5, 512, 64, 128),
        ("stage2d", 6, 256, 32, 64),
        ("stage1d", 7, 128, 16, 64),
    ]
    names: dict[str, tuple] = {}
    for name, levels, inp, mid, out in full:
        if size == "small":
            inp = 3 if name == "stage1" else 128 if name.endswith("d") else 64
            mid, out = 16, 64
        names.update(rsu(name, levels, inp, mid, out))
    sides = (64, 64, 128, 256, 512, 512) if size == "full" else (64,) * 6
    for i, channels in enumerate(sides, start=1):
        names.update({f"side{i}.weight": (1, channels, 3, 3), f"side{i}.bias": (1,)})
    names.update({"outconv.weight": (1, 6, 1, 1), "outconv.bias": (1,)})
    return names


def random_state(size: str) -> dict[str, torch.Tensor]:
    """A checkpoint of the published layout with random numbers that keep signals alive."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published(size).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.1
    return state


def narrow(seed: int = 0) -> U2Net:
    torch.manual_seed(seed)
    return U2Net(NARROW).eval()

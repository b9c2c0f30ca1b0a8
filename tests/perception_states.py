"""PE-Core checkpoints: published sizes, names and shapes written out, small random states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from raypref.demo import models

Shapes = dict[str, tuple[int, ...]]


class Published(NamedTuple):
    """Sizes as the release's configuration names them."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp: int
    cls: bool
    output_dim: int
    text_width: int
    text_layers: int
    text_heads: int
    context: int
    vocab: int = 49408


G14 = Published(448, 14, 1536, 50, 16, 8960, False, 1280, 1280, 24, 20, 72)
L14 = Published(336, 14, 1024, 24, 16, 4096, True, 1024, 1024, 24, 16, 32)
B16 = Published(224, 16, 768, 12, 12, 3072, True, 1024, 1024, 24, 16, 32)
VOCABULARY = len(models.tokenizer())
SMALL = {
    "no class token": Published(32, 8, 128, 3, 2, 200, False, 24, 64, 2, 1, 16, VOCABULARY),
    "class token": Published(24, 8, 192, 2, 3, 256, True, 16, 128, 2, 2, 12, VOCABULARY),
}


def names(size: Published) -> Shapes:
    """Every tensor of a released state dict."""

    def block(name: str, width: int, mlp: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for norm in ("ln_1", "ln_2"):
            yield from ((f"{name}.{norm}.{leaf}", (width,)) for leaf in ("weight", "bias"))
        yield f"{name}.attn.in_proj_weight", (3 * width, width)
        yield f"{name}.attn.in_proj_bias", (3 * width,)
        yield f"{name}.attn.out_proj.weight", (width, width)
        yield f"{name}.attn.out_proj.bias", (width,)
        yield f"{name}.mlp.c_fc.weight", (mlp, width)
        yield f"{name}.mlp.c_fc.bias", (mlp,)
        yield f"{name}.mlp.c_proj.weight", (width, mlp)
        yield f"{name}.mlp.c_proj.bias", (width,)

    seen, read = size.width, size.text_width
    found: Shapes = {
        "logit_scale": (),
        "positional_embedding": (size.context, read),
        "text_projection": (read, size.output_dim),
        "token_embedding.weight": (size.vocab, read),
        "visual.conv1.weight": (seen, 3, size.patch_size, size.patch_size),
        "visual.positional_embedding": ((size.image_size // size.patch_size) ** 2 + size.cls, seen),
        "visual.proj": (seen, size.output_dim),
        "visual.attn_pool.probe": (1, 1, seen),
    }
    if size.cls:
        found["visual.class_embedding"] = (seen,)
    for norm, width in (("ln_final", read), ("visual.ln_pre", seen), ("visual.ln_post", seen)):
        found[f"{norm}.weight"] = found[f"{norm}.bias"] = (width,)
    pool = dict(block("visual.attn_pool", seen, 4 * seen))
    found |= {n.replace(".ln_1.", ".layernorm."): s for n, s in pool.items() if ".ln_2." not in n}
    for i in range(size.layers):
        found |= dict(block(f"visual.transformer.resblocks.{i}", seen, size.mlp))
    for i in range(size.text_layers):
        found |= dict(block(f"transformer.resblocks.{i}", read, 4 * read))
    return found


def random_state(size: Published) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(size.width)
    state = {
        name: torch.randn(shape, generator=generator)
        * (0.3 if len(shape) < 2 else shape[-1] ** -0.5)
        for name, shape in names(size).items()
    }
    return state | {"logit_scale": torch.tensor(math.log(100.0))}

"""Perception Encoder (PE-Core), image and text tower, under the names of the published checkpoints.

Bolya et al. 2025, "Perception Encoder: The best visual embeddings are not at the output of the
network", arXiv 2504.13181; weights at https://huggingface.co/facebook/PE-Core-G14-448.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_DIM = 64  # width of an attention head, in both towers of every model but the largest,
LARGEST = {1536: 96}  # whose image tower of this width has wider ones
POOLER_HEADS = 8
BASE = 10_000.0  # of the rotations' wavelengths


class Tower(NamedTuple):
    """Sizes of a tower."""

    width: int
    layers: int
    mlp: int
    heads: int


class EncoderSize(NamedTuple):
    """Sizes of a model, as its tensors tell them."""

    image: Tower
    text: Tower
    patch: int  # pixels
    grid: int  # patches on a side
    class_token: bool
    context: int  # tokens of a prompt
    vocabulary: int
    embedding: int


def size_of(state: Mapping[str, Tensor]) -> EncoderSize:
    """What the shapes of a checkpoint say.

    Raises:
        KeyError: a tensor that says it is missing.
        ValueError: it has another number of dimensions, or heads do not fit a tower's width.
    """
    _, _, patch, _ = state["visual.conv1.weight"].shape
    places, _ = state["visual.positional_embedding"].shape
    context, _ = state["positional_embedding"].shape
    vocabulary, _ = state["token_embedding.weight"].shape
    _, embedding = state["visual.proj"].shape
    token = "visual.class_embedding" in state
    return EncoderSize(
        image=_tower(state, "visual.transformer.resblocks.", LARGEST),
        text=_tower(state, "transformer.resblocks.", {}),
        patch=patch,
        grid=isqrt(places - token),
        class_token=token,
        context=context,
        vocabulary=vocabulary,
        embedding=embedding,
    )


def _tower(state: Mapping[str, Tensor], blocks: str, head_dims: Mapping[int, int]) -> Tower:
    mlp, width = state[f"{blocks}0.mlp.c_fc.weight"].shape
    numbers = {name[len(blocks) :].split(".")[0] for name in state if name.startswith(blocks)}
    head_dim = head_dims.get(width, HEAD_DIM)
    if width % head_dim:
        raise ValueError(f"a tower of width {width} has no heads of {head_dim}")
    return Tower(width, len(numbers), mlp, width // head_dim)


class PerceptionEncoder(nn.Module):
    """Images and prompts to embeddings, in one space.

    Args:
        size: of the model; the parameters are not set.
    """

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        self.visual = ImageTower(size)
        width = size.text.width
        self.token_embedding = nn.Embedding(size.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(size.context, width))
        self.transformer = Transformer(size.text)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, size.embedding))
        self.logit_scale = nn.Parameter(torch.empty(()))

    def images(self, pixels_BCHW: Tensor) -> Tensor:
        """Embeddings [B, D] of pixels in -1..1, in the model's precision."""
        embeddings_BD: Tensor = self.visual(pixels_BCHW)
        return embeddings_BD

    def texts(self, tokens_BL: Tensor) -> Tensor:
        """Embeddings [B, D] of token ids; the end token has the highest id, and its place is read.

        What follows the end token does not count: a token sees only those before it.
        """
        x_BLW = self.token_embedding(tokens_BL) + self.positional_embedding[: tokens_BL.shape[1]]
        x_BLW = self.ln_final(self.transformer(x_BLW, causal=True))
        end_B = tokens_BL.argmax(dim=-1)
        return x_BLW[torch.arange(len(x_BLW), device=end_B.device), end_B] @ self.text_projection


class ImageTower(nn.Module):
    """A vision transformer with rotated queries and keys, read by one attending probe."""

    def __init__(self, size: EncoderSize) -> None:
        super().__init__()
        width = size.image.width
        self.size = size
        self.conv1 = nn.Conv2d(3, width, size.patch, stride=size.patch, bias=False)
        if size.class_token:
            self.class_embedding = nn.Parameter(torch.empty(width))
        places = size.grid**2 + size.class_token
        self.positional_embedding = nn.Parameter(torch.empty(places, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(size.image)
        self.ln_post = nn.LayerNorm(width)
        self.attn_pool = Pooler(width)
        self.proj = nn.Parameter(torch.empty(width, size.embedding))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, D]."""
        x_BLW = self.conv1(pixels_BCHW).flatten(2).transpose(1, 2)
        if self.size.class_token:
            token_B1W = self.class_embedding.expand(len(x_BLW), 1, -1)
            x_BLW = torch.cat([token_B1W, x_BLW], dim=1)
        x_BLW = self.ln_pre(x_BLW + self.positional_embedding)
        angles_LH = angles(self.size).to(x_BLW.device)
        x_BLW = self.ln_post(self.transformer(x_BLW, angles_LH=angles_LH))
        pooled_BD: Tensor = self.attn_pool(x_BLW) @ self.proj
        return pooled_BD


class Transformer(nn.Module):
    """Residual blocks of attention and MLP, norms first. [B, L, W] to the same."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(tower) for _ in range(tower.layers))

    def forward(
        self, x_BLW: Tensor, *, causal: bool = False, angles_LH: Tensor | None = None
    ) -> Tensor:
        """All blocks; `causal` lets each place see only those before it."""
        for block in self.resblocks:
            x_BLW = block(x_BLW, causal=causal, angles_LH=angles_LH)
        return x_BLW


class Block(nn.Module):
    """One block of a `Transformer`."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(tower.width)
        self.attn = Attention(tower.width, tower.heads)
        self.ln_2 = nn.LayerNorm(tower.width)
        self.mlp = Mlp(tower.width, tower.mlp)

    def forward(self, x_BLW: Tensor, *, causal: bool, angles_LH: Tensor | None) -> Tensor:
        """[B, L, W] to the same."""
        y_BLW = self.ln_1(x_BLW)
        x_BLW = x_BLW + self.attn(y_BLW, y_BLW, causal=causal, angles_LH=angles_LH)
        return x_BLW + self.mlp(self.ln_2(x_BLW))


class Attention(nn.Module):
    """Attention of several heads, with the parameters of `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        asking_BQW: Tensor,
        asked_BLW: Tensor,
        *,
        causal: bool = False,
        angles_LH: Tensor | None = None,
    ) -> Tensor:
        """[B, Q, W] of queries from [B, L, W] of keys and values."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        inputs = (asking_BQW, asked_BLW, asked_BLW)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        if angles_LH is not None:
            query, key = rotated(query, angles_LH), rotated(key, angles_LH)
        mixed_BNQH = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        out_BQW: Tensor = self.out_proj(mixed_BNQH.transpose(1, 2).flatten(2))
        return out_BQW


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, inside)
        self.c_proj = nn.Linear(inside, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] to the same."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class Pooler(nn.Module):
    """A learned probe attends to all places, then an MLP. [B, L, W] to [B, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attn = Attention(width, POOLER_HEADS)
        self.layernorm = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """What the probe reads; the probe itself is not added."""
        x_B1W = self.attn(self.probe.expand(len(x_BLW), -1, -1), x_BLW)
        x_B1W = x_B1W + self.mlp(self.layernorm(x_B1W))
        return x_B1W[:, 0]


def angles(size: EncoderSize) -> Tensor:
    """By how much each place's pairs of channels are rotated: float32 [L, H / 2].

    The first half of a head's pairs turns with the column, the second with the row. Where there is
    a class token, it stands at 0 and patches are counted from 1.
    """
    per_axis = size.image.width // size.image.heads // 4
    speeds = BASE ** (-torch.arange(per_axis, dtype=torch.float32) / per_axis)
    steps_GS = (torch.arange(size.grid) + size.class_token)[:, None] * speeds
    columns = steps_GS[None].expand(size.grid, -1, -1)
    rows = steps_GS[:, None].expand(-1, size.grid, -1)
    angles_LH = torch.cat([columns, rows], dim=-1).flatten(0, 1)
    if size.class_token:
        angles_LH = torch.cat([torch.zeros(1, 2 * per_axis), angles_LH])
    return angles_LH


def rotated(x_BNLH: Tensor, angles_LH: Tensor) -> Tensor:
    """Rotate neighbouring channels (2i, 2i + 1) as pairs, in float32 whatever the precision."""
    first, second = x_BNLH.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles_LH.cos(), angles_LH.sin()
    pairs = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return pairs.flatten(-2).to(x_BNLH.dtype)

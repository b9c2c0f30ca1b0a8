"""Kernels and bytes of a pass on the meta device: by hand for layers, and SD-1.5's at full size."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from gpu_sections.counting import META, CudaAutocast, count, counted
from torch import nn

from raypref.models.families.base import Denoiser

BFLOAT16 = torch.bfloat16


class Holder:
    """As much of a denoiser as the counter looks at."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


def passes_of(module: nn.Module) -> Any:
    return counted(cast("Denoiser", Holder(module)))


def test_kernels_and_kept_bytes_by_hand() -> None:
    layer = nn.Linear(8, 16, device=META)
    x = torch.empty(4, 8, device=META, requires_grad=True)
    with passes_of(layer) as passes:
        y = F.silu(layer(x.view(2, 2, 8)).view(4, 16))
        y.transpose(0, 1).detach()
    # A matrix product with its bias, and SiLU; views launch nothing.
    assert passes.total == 2
    # SiLU keeps its input of 4 x 16; the product keeps x, 4 x 8, and a weight that is there anyway.
    assert passes.saved_bytes == (4 * 16 + 4 * 8) * 4
    assert passes.flops.get_total_flops() == 2 * 4 * 8 * 16


def test_attention_is_one_kernel() -> None:
    q, k, v = (torch.empty(1, 2, 16, 8, device=META, dtype=BFLOAT16) for _ in range(3))
    with passes_of(nn.Identity()) as passes:
        out = F.scaled_dot_product_attention(q, k, v)
    assert passes.total == 1 and out.shape == q.shape
    assert passes.flops.get_total_flops() == 2 * (2 * 2 * 16 * 16 * 8)


def test_autocast_converts_what_cudas_does() -> None:
    linear = nn.Linear(8, 8, device=META)
    norm = nn.LayerNorm(8, device=META, dtype=BFLOAT16)
    group = nn.GroupNorm(2, 8, device=META, dtype=BFLOAT16)
    x = torch.empty(4, 8, device=META)
    with CudaAutocast("cuda", dtype=BFLOAT16):
        y = linear(x)
        assert y.dtype == BFLOAT16
        # On the list of float32: this is what training without autocast avoids.
        assert norm(y).dtype == torch.float32
        assert group(y).dtype == torch.float32
        assert (y + 1).dtype == BFLOAT16  # on no list
        assert torch.cat([x, y]).dtype == torch.float32
    with CudaAutocast("cuda", dtype=BFLOAT16, enabled=False):
        assert linear(x).dtype == torch.float32


def test_torchs_own_autocast_is_back_afterwards() -> None:
    own = torch.autocast
    with passes_of(nn.Identity()):
        assert torch.autocast is CudaAutocast
    assert torch.autocast is own


def test_sd15_at_full_size() -> None:
    """Kernels, and GiB kept per sample: 2,157 and 1.06 under autocast; as an audit counted both."""
    counts = count("sd15")
    assert counts.kernels == pytest.approx(1240, rel=0.02)
    assert counts.saved == pytest.approx(0.74, rel=0.05)
    assert counts.forward == pytest.approx(0.804, abs=0.001)

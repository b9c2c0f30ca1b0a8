"""AdamW whose moments are stored in 8 bits, by bitsandbytes; its state is plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 256  # values of a moment that share a scale, as bitsandbytes' kernels have it
PORTION = 2**26  # values that are updated at a time: the kernels count in 32 bits


class AdamW8bit(torch.optim.Optimizer):
    """AdamW with moments in 8 bits (arXiv 2110.02861); weights and gradients keep their precision.

    The update is that of `bitsandbytes.optim.AdamW8bit`. Of a vector below 4,096 values, too, the
    moments are stored in 8 bits.

    Args:
        parameters: contiguous vectors in float32.
        lr: learning rate; the one in `param_groups` counts.
        betas: of both moments.
        eps: added to the root of the second.
        weight_decay: decoupled from the gradient.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "decay": weight_decay})
        self.values: dict[torch.device, tuple[Tensor, Tensor]] = {}  # that codes stand for

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every vector that has a gradient, in portions."""
        assert closure is None, "the loss is not computed again"
        for group in self.param_groups:
            for vector in group["params"]:
                if vector.grad is not None:
                    self._update(vector, vector.grad, group)

    def _update(self, vector_P: Tensor, gradient_P: Tensor, group: dict[str, Any]) -> None:
        from bitsandbytes.functional import optimizer_update_8bit_blockwise

        state = self.state[vector_P]
        if not state:
            state.update(_fresh(vector_P))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        signed, unsigned = self._values(vector_P.device)
        for first in range(0, len(vector_P), PORTION):
            part = slice(first, first + PORTION)
            blocks = slice(first // BLOCK, (first + PORTION) // BLOCK)
            optimizer_update_8bit_blockwise(
                "adam",
                gradient_P[part],
                vector_P.data[part],
                state["exp_avg"][part],
                state["exp_avg_sq"][part],
                beta1,
                beta2,
                0.0,  # beta3 and alpha, of other optimizers
                0.0,
                group["eps"],
                int(state["step"]),
                group["lr"],
                signed,
                unsigned,
                state["exp_avg_scales"][blocks],
                state["exp_avg_sq_scales"][blocks],
                weight_decay=group["decay"],
            )

    def _values(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the 256 codes of the first moment stand for, and of the second."""
        from bitsandbytes.functional import create_dynamic_map

        if device not in self.values:
            made = (create_dynamic_map(signed=signed).to(device) for signed in (True, False))
            self.values[device] = (next(made), next(made))
        return self.values[device]


def _fresh(vector_P: Tensor) -> dict[str, Tensor]:
    """Moments of 0: scales are."""
    blocks = -(-len(vector_P) // BLOCK)
    found = {"step": torch.zeros(())}
    for name in ("exp_avg", "exp_avg_sq"):
        found[name] = torch.zeros_like(vector_P, dtype=torch.uint8)
        found[f"{name}_scales"] = torch.zeros(blocks, device=vector_P.device)
    return found

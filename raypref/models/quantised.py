"""Linear layers of a frozen network in 8 or 4 bits; what is trained on top keeps its precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raypref.core.device import Quantisation

BLOCK = 64  # weights that share a scale in nf4
LARGEST = 127  # of int8


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight is stored as codes with scales, and computed with dequantised.

    `weight` is dequantised anew whenever it is read. Inputs are not quantised.
    """

    codes: Tensor  # int8 [out, in], or uint8 [out * in / 2, 1] with two weights each
    scales: Tensor  # one per output, [out, 1], or per `BLOCK` weights
    computes_in: torch.dtype

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, [out, in], in the precision that the layer computes in."""
        width, dtype = self.in_features, self.computes_in
        return _dequantised(self.codes, self.scales, width=width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        width, dtype = self.in_features, self.computes_in
        output: Tensor = _linear(x, self.codes, self.scales, self.bias, width, dtype)
        return output

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """With a weight without values too: FLUX's LoRA loader asks for its shape."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        shape = self.out_features, self.in_features
        destination[f"{prefix}weight"] = torch.empty(shape, dtype=self.computes_in, device="meta")


# Backward dequantises the weight again: kept from forward, all layers' would fill the card. These
# are operators of their own because a compiler that sees the two dequantisations keeps one result.


@torch.library.custom_op("raypref::quantised_linear", mutates_args=())
def _linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    return F.linear(x, _dequantised(codes, scales, width=width, dtype=dtype), bias)


@torch.library.custom_op("raypref::quantised_linear_backward", mutates_args=())
def _linear_backward(
    gradient: Tensor, codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype
) -> Tensor:
    return gradient @ _dequantised(codes, scales, width=width, dtype=dtype)


@_linear.register_fake
def _(x, codes, scales, bias, width, dtype):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], _outputs(codes, width))


@_linear_backward.register_fake
def _(gradient, codes, scales, width, dtype):  # type: ignore[no-untyped-def]
    return gradient.new_empty(*gradient.shape[:-1], width)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, scales, _, ctx.width, ctx.dtype = inputs
    ctx.save_for_backward(codes, scales)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    codes, scales = ctx.saved_tensors
    return _linear_backward(gradient, codes, scales, ctx.width, ctx.dtype), *[None] * 5


_linear.register_autograd(_backward, setup_context=_keep)


def quantise(network: nn.Module, kind: Quantisation, *, device: torch.device) -> None:
    """Store the weights of a network's linear layers in fewer bits, in place.

    `int8` keeps -127 .. 127 and the largest absolute weight of every output (the weights of
    LLM.int8, arXiv 2208.07339). `nf4` keeps 4 bits per weight and the largest absolute weight of
    every 64 (QLoRA, arXiv 2305.14314), by bitsandbytes: the codes that diffusers' 4-bit
    quantisation makes without double quantisation. Biases, norms, convolutions stay as they are.

    Args:
        network: a UNet or transformer of diffusers, frozen; where it is loaded, as on the host.
        kind: `int8` or `nf4`.
        device: where each layer's weight goes before it is quantised, one at a time.
    """
    for layer in network.modules():
        if type(layer) is nn.Linear:
            _quantise_layer(layer, kind, device)


def _quantise_layer(layer: nn.Linear, kind: Quantisation, device: torch.device) -> None:
    """Store one layer's weight in fewer bits, as buffers; the layer's name stays."""
    weight = layer.weight.detach().to(device)
    codes, scales = _int8(weight) if kind == "int8" else _nf4(weight)
    del layer.weight
    layer.__class__ = QuantisedLinear
    assert isinstance(layer, QuantisedLinear)
    layer.computes_in = weight.dtype
    layer.register_buffer("codes", codes)
    layer.register_buffer("scales", scales)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales: nearest multiples of a 127th of each output's largest weight."""
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    largest = precise.abs().amax(1, keepdim=True)
    scales = largest.clamp(min=torch.finfo(precise.dtype).tiny) / LARGEST
    return (precise / scales).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def _nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of bitsandbytes, which reads float32 at most."""
    from bitsandbytes.functional import quantize_4bit

    read = weight.float() if weight.dtype == torch.float64 else weight
    codes, state = quantize_4bit(read.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return codes, state.absmax


def _outputs(codes: Tensor, width: int) -> int:
    """Outputs of a layer of so many inputs."""
    return len(codes) if codes.dtype == torch.int8 else codes.numel() * 2 // width


def _dequantised(codes: Tensor, scales: Tensor, *, width: int, dtype: torch.dtype) -> Tensor:
    """The weight that codes and scales stand for, [out, width]."""
    if codes.dtype == torch.int8:
        weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        return torch.mul(codes, scales, out=weight)  # rounded once, without a copy in float32
    from bitsandbytes.functional import QuantState, dequantize_4bit

    # Float64 has no kernel: on a CPU the memory would be left as it was found. Blocks run on from
    # row to row, which the CPU's kernel gets wrong (0.50): it is given one row.
    known, outputs = torch.float32 if dtype == torch.float64 else dtype, _outputs(codes, width)
    row = torch.Size([outputs * width])
    state = QuantState(scales, row, dtype=known, blocksize=BLOCK, quant_type="nf4")
    values: Tensor = dequantize_4bit(codes, state)
    return values.view(outputs, width).to(dtype)

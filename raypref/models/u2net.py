"""U2-Net, the salient object detector, under the parameter names of the published checkpoints.

A U of U's: every stage of the encoder and of the decoder is itself a small U-Net with a residual
connection (RSU). Qin et al., "U2-Net: Going deeper with nested U-structure for salient object
detection", 2020, arXiv 2005.09007; weights at https://github.com/xuebinqin/U-2-Net.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from raypref.core.config import InputError

# Stage -> (channels inside, channels out). Other widths work too: `load_u2net` reads them off.
Plan = dict[str, tuple[int, int]]

STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5", "stage6")
DECODERS = ("stage5d", "stage4d", "stage3d", "stage2d", "stage1d")  # in the order of their use

FULL: Plan = {  # u2net.pth: 44,009,869 parameters
    "stage1": (32, 64),
    "stage2": (32, 128),
    "stage3": (64, 256),
    "stage4": (128, 512),
    "stage5": (256, 512),
    "stage6": (256, 512),
    "stage5d": (256, 512),
    "stage4d": (128, 256),
    "stage3d": (64, 128),
    "stage2d": (32, 64),
    "stage1d": (16, 64),
}
SMALL: Plan = dict.fromkeys((*STAGES, *DECODERS), (16, 64))  # u2netp.pth: 1,131,181 parameters

# Stage number -> levels of its RSU. Stages 5 and 6 see a map too small to pool further and dilate.
_DEPTH = {1: 7, 2: 6, 3: 5, 4: 4, 5: 4, 6: 4}


class ConvNormRelu(nn.Module):
    """3x3 convolution, batch norm, ReLU. (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int, *, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, rectify."""
        return F.relu(self.bn_s1(self.conv_s1(x)), inplace=True)


class ResidualU(nn.ModuleDict):
    """An RSU: a U-Net of `depth` levels added to its own input features.

    Level i is `rebnconv{i}` on the way down and `rebnconv{i}d` on the way up. The pooled variant
    halves the map between levels; the dilated one (RSU-4F of the paper) keeps its size and doubles
    the dilation instead. (B, in, H, W) to (B, out, H, W).
    """

    def __init__(
        self, channels_in: int, inside: int, out: int, *, depth: int, dilated: bool = False
    ) -> None:
        levels = range(1, depth)
        reach = {i: 2 ** (i - 1) if dilated else 1 for i in levels}
        layers: dict[str, nn.Module] = {"rebnconvin": ConvNormRelu(channels_in, out)}
        for i in levels:
            source = out if i == 1 else inside
            layers[f"rebnconv{i}"] = ConvNormRelu(source, inside, dilation=reach[i])
        bottom = 2 ** (depth - 1) if dilated else 2
        layers[f"rebnconv{depth}"] = ConvNormRelu(inside, inside, dilation=bottom)
        for i in reversed(levels):
            target = out if i == 1 else inside
            layers[f"rebnconv{i}d"] = ConvNormRelu(2 * inside, target, dilation=reach[i])
        super().__init__(layers)
        self.depth = depth
        self.dilated = dilated

    def forward(self, x: Tensor) -> Tensor:
        """Down, across the bottom, and up again with the skips."""
        x = residual = self["rebnconvin"](x)
        skips = []
        for i in range(1, self.depth):
            if i > 1 and not self.dilated:
                x = halve(x)
            x = self[f"rebnconv{i}"](x)
            skips.append(x)
        x = self[f"rebnconv{self.depth}"](x)
        for i in range(self.depth - 1, 0, -1):
            skip = skips.pop()
            x = self[f"rebnconv{i}d"](torch.cat((grow(x, skip), skip), dim=1))
        return x + residual


class U2Net(nn.ModuleDict):
    """Six RSU stages down, five up, a one-channel map at each of six sizes, and their fusion."""

    def __init__(self, plan: Plan) -> None:
        layers: dict[str, nn.Module] = {}
        channels = 3
        for stage in STAGES:
            layers[stage] = _residual_u(stage, channels, plan)
            channels = plan[stage][1]
        for stage in DECODERS:
            channels += plan[stage.removesuffix("d")][1]
            layers[stage] = _residual_u(stage, channels, plan)
            channels = plan[stage][1]
        for i in range(1, 7):
            source = "stage6" if i == 6 else f"stage{i}d"
            layers[f"side{i}"] = nn.Conv2d(plan[source][1], 1, 3, padding=1)
        layers["outconv"] = nn.Conv2d(6, 1, 1)
        super().__init__(layers)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Salient object maps.

        Args:
            x_BCHW: RGB normalised with ImageNet's mean and standard deviation, (B, 3, H, W);
                320x320 is what the published weights were trained for.

        Returns:
            Seven maps (B, 1, H, W) in 0..1: the fused one first, then those of the six sizes,
            finest first.
        """
        x = x_BCHW
        skips: list[Tensor] = []
        for stage in STAGES:
            if skips:
                x = halve(x)
            x = self[stage](x)
            skips.append(x)
        features = [skips.pop()]
        for stage in DECODERS:
            skip = skips.pop()
            x = self[stage](torch.cat((grow(x, skip), skip), dim=1))
            features.insert(0, x)
        sides = [self[f"side{i}"](feature) for i, feature in enumerate(features, start=1)]
        sides = [grow(side, x_BCHW) for side in sides]
        fused = self["outconv"](torch.cat(sides, dim=1))
        return tuple(torch.sigmoid(logits) for logits in (fused, *sides))


class U2NETP(U2Net):
    """The small network, untrained."""

    def __init__(self) -> None:
        super().__init__(SMALL)


def halve(x: Tensor) -> Tensor:
    """Max-pool (B, C, H, W) to half its size, odd sides rounded up."""
    return F.max_pool2d(x, 2, stride=2, ceil_mode=True)


def grow(x: Tensor, like: Tensor) -> Tensor:
    """Scale (B, C, H, W) bilinearly to the height and width of another map."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


def load_u2net(path: Path, *, key: str = "saliency.weights") -> U2Net:
    """Build the network a checkpoint belongs to (full, small or any other width) and load it.

    Args:
        path: a state dict under the published names: `.pth`, read without executing pickled code,
            or `.safetensors`.
        key: the configuration key the path came from, for the error.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        InputError: the file is damaged or of another model.
    """
    state = _read(path, key=key)
    try:
        # No memory until the tensors themselves are put in: the widths come from a foreign file.
        with torch.device("meta"):
            model = U2Net(_plan_of(state))
        model.load_state_dict(state, assign=True)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise _no_checkpoint(path, key, error) from None
    return model.float().eval()


def _residual_u(stage: str, channels: int, plan: Plan) -> ResidualU:
    number = int(stage.removeprefix("stage").removesuffix("d"))
    inside, out = plan[stage]
    return ResidualU(channels, inside, out, depth=_DEPTH[number], dilated=number >= 5)


def _read(path: Path, *, key: str) -> dict[str, Tensor]:
    # Foreign bytes: the unpickler raises whatever the bytes make it raise, and runs no code.
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _no_checkpoint(path, key, error) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _no_checkpoint(path, key, TypeError("not a dict of tensors"))
    return state


def _plan_of(state: dict[str, Tensor]) -> Plan:
    """Widths of every stage, read off the shapes of two of its convolutions."""

    def width(name: str) -> int:
        return state[f"{name}.conv_s1.weight"].shape[0]

    stages = (*STAGES, *DECODERS)
    return {stage: (width(f"{stage}.rebnconv1"), width(f"{stage}.rebnconvin")) for stage in stages}


def _no_checkpoint(path: Path, key: str, error: Exception) -> InputError:
    text = " ".join(str(error).split())[:200]
    return InputError(
        f"{key}: '{path}' is no U2-Net checkpoint ({type(error).__name__}: {text}); "
        "expected u2net.pth or u2netp.pth of https://github.com/xuebinqin/U-2-Net"
    )

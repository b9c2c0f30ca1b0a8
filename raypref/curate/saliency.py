"""The transform that finds what a photograph is of: the region the perturbation will repaint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL import Image

from raypref.core.config import Location, Resources, Section, setting
from raypref.core.device import pick_device
from raypref.core.rows import Row, reject, without_copies
from raypref.images.decode import as_image
from raypref.models import hub

if TYPE_CHECKING:
    import torch
    from torch import nn

    from raypref.models.u2net import U2Net

THRESHOLD = 128  # soft values above it (of 0..255) belong to the salient region

_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)  # ImageNet, RGB of 0..1
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


class SaliencyConfig(Section):
    """Which detector, and what it may use."""

    weights: Location = setting(
        "u2net.pth", "U2-Net checkpoint: a file, OWNER/REPO/FILE on the hub, or tiny:NAME"
    )
    side: int = setting(320, "side in pixels the detector was trained on", ge=32)
    resources: Resources = Resources()

    def file(self) -> Path:
        """The local path of the checkpoint.

        Raises:
            InputError: it is not there and cannot be fetched.
        """
        return hub.weight_file(
            self.weights,
            key="saliency.weights",
            origin="https://github.com/xuebinqin/U-2-Net (u2net.pth, 176 MB)",
        )


class Saliency:
    """Adds the soft saliency map and its binary mask.

    Reads `chosen`, the RGB crop. Writes two images of the crop's size and mode L:
    `saliency`, the soft map 0..255, and `mask`, 255 where the soft map is above 128 and 0
    elsewhere. Rejects a photograph with no such pixel as `no_salient_region`: there would be
    nothing to repaint.
    """

    name = "saliency"
    reads: tuple[str, ...] = ("chosen",)
    writes = pa.schema([pa.field("saliency", pa.binary()), pa.field("mask", pa.binary())])

    def __init__(self, config: SaliencyConfig) -> None:
        self.config = config
        self.resources = config.resources
        self.model: U2Net | None = None

    def setup(self) -> None:
        """Load the detector onto the GPU, where the stage holds one, or the CPU.

        Raises:
            InputError: no such checkpoint, or the file is none.
        """
        import torch

        from raypref.models.u2net import load_u2net

        model = load_u2net(self.config.file(), key="saliency.weights")
        model.to(pick_device(self.resources.num_gpus))
        # Convolutions read this layout faster: 1.3 to 1.8 times on a CPU.
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, rows: list[Row]) -> list[torch.Tensor]:
        """The network's inputs; it sees one image at a time, so copies would be for nothing."""
        return [_prepare(as_image(row["chosen"]), self.config.side) for row in without_copies(rows)]

    def compute(self, batch: list[torch.Tensor]) -> list[np.ndarray]:
        """The fused maps, float32 (side, side) each."""
        assert self.model is not None, "setup() comes before the first batch"
        return [_fused(self.model, x_1CHW) for x_1CHW in batch]

    def finish(self, rows: list[Row], out: list[np.ndarray]) -> None:
        """Add `saliency` and `mask` to every row, or reject it."""
        for row, fused in zip(rows, out, strict=True):
            soft = _resize_back(_stretch(fused), as_image(row["chosen"]).size)
            salient = soft > THRESHOLD
            if not salient.any():
                message = f"no pixel of the saliency map is above {THRESHOLD}"
                reject(row, self.name, "no_salient_region", message)
                continue
            row["saliency"] = Image.fromarray(soft)
            row["mask"] = Image.fromarray(salient.astype(np.uint8) * 255)


def saliency_map(
    model: nn.Module, images: Sequence[Image.Image], *, side: int = 320
) -> list[np.ndarray]:
    """Soft saliency maps, each stretched to its own full range.

    Follows the released code of the method: bilinear resize to `side` regardless of aspect, /255,
    ImageNet mean and standard deviation, the fused map, min-max normalised **per image**, resized
    back bilinearly. (U2-Net's own test script divides by the image's maximum and resizes with
    scikit-image; the maps differ by about 0.01 on average.)

    The network sees one image at a time, so that a map cannot depend on its neighbours in the
    batch, not even in the last bit; on a CPU that is also the fastest batch size.

    Args:
        model: returns the map (1, 1, side, side) first, as `U2Net` does.
        images: mode RGB, any sizes.
        side: what the network works at; the published one was trained on 320.

    Returns:
        One uint8 array (H, W) per image, 0..255; all 0 where the network sees no difference
        between any two places.
    """
    return [
        _resize_back(_stretch(_fused(model, _prepare(image, side))), image.size) for image in images
    ]


def _prepare(image: Image.Image, side: int) -> torch.Tensor:
    """The network's input, float32 (1, 3, side, side)."""
    assert image.mode == "RGB", f"saliency of an image of mode {image.mode}"
    import torch

    small = image.resize((side, side), Image.Resampling.BILINEAR)
    pixels_HWC = np.asarray(small, dtype=np.float32) / 255
    normalised = (pixels_HWC - _MEAN) / _STD
    return torch.from_numpy(normalised.transpose(2, 0, 1)[None].copy())


def _fused(model: nn.Module, x_1CHW: torch.Tensor) -> np.ndarray:
    """The network's fused map of one image, float32 (side, side)."""
    import torch

    weight = next(model.parameters())
    x_1CHW = x_1CHW.to(weight.device, weight.dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        fused: np.ndarray = model(x_1CHW)[0][0, 0].float().cpu().numpy()
    return fused


def _stretch(values: np.ndarray) -> np.ndarray:
    """Min-max normalise (H, W) to 0..1; a constant map becomes 0."""
    low, high = values.min(), values.max()
    if high == low:
        return np.zeros_like(values)
    return (values - low) / (high - low)


def _resize_back(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values 0..1 (H, W) as uint8 of another size (width, height), rounded once."""
    resized = Image.fromarray(values * 255).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized).round().clip(0, 255).astype(np.uint8)

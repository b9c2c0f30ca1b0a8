"""What training tests share: a few encoded pairs and a tiny denoiser, in float64."""

from functools import cache

import numpy as np
import small
import torch
from PIL import Image, ImageFilter

from raypref.align.cache import FLIPS, PairData
from raypref.align.loop import Alone, Group, train
from raypref.align.stage import StageConfig
from raypref.align.watch import StepMetrics
from raypref.diffusion.backbone import BackboneConfig, Denoiser, load_denoiser, load_encoder
from raypref.diffusion.lora import LoraConfig
from raypref.tiny.world import sample_scenes

CPU = torch.device("cpu")
BASE = BackboneConfig(model=str(small.path("sd15")), dtype="float64")
LORA = LoraConfig(rank=4, alpha=4)


@cache
def photographs(count: int) -> list[tuple[str, Image.Image]]:
    """Caption and image of rendered scenes."""
    from raypref.tiny import photograph, world

    scenes = sample_scenes(count, 3)
    return [
        (world.caption(scene), Image.fromarray(photograph.render(scene, seed=i)))
        for i, scene in enumerate(scenes)
    ]


@cache
def pairs(count: int = 10) -> PairData:
    """Photographs against their blurred, half faded twins, encoded in float64."""
    encoder = load_encoder(BASE, device=CPU)
    moments = []
    for _, photo in photographs(count):
        blurred = photo.filter(ImageFilter.GaussianBlur(2))
        twin = Image.blend(blurred, blurred.convert("L").convert("RGB"), 0.5)
        sides = [photo, twin]
        images = [image for side in sides for image in (side, _mirrored(side))]
        values = encoder.image_moments(images)
        moments.append(values.reshape(2, FLIPS, *values.shape[1:]))
    return PairData(
        moments=torch.stack(moments),
        embeddings=encoder.text_embeddings([caption for caption, _ in photographs(count)]),
        unconditional=encoder.text_embeddings([""])[0],
    )


def _mirrored(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image)[:, ::-1].copy())


def denoiser() -> Denoiser:
    """A fresh tiny UNet in float64, without adapters."""
    return load_denoiser(BASE, device=CPU)


def run(
    stage: StageConfig,
    folder: str,
    *,
    start: str | None = None,
    seed: int = 0,
    group: Group | None = None,
    network: Denoiser | None = None,
    on_step: object = None,
) -> list[StepMetrics]:
    """Train a stage on `pairs()`."""
    return train(
        network or denoiser(),
        pairs(),
        stage,
        LORA,
        name=f"test-{stage.objective}",
        seed=seed,
        folder=folder,
        start=start,
        group=group or Alone(),
        on_step=on_step or (lambda metrics: None),  # type: ignore[arg-type]
    )

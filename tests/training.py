"""What training tests share: a few encoded pairs and a small denoiser of a family, in float64."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import small
import small_flux2_klein
import small_qwen_image
import small_z_image
import torch
from PIL import Image, ImageFilter

from raypref.align.config import TrainingConfig
from raypref.align.latents import FLIPS
from raypref.align.loop import Alone, Ranks, train
from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import RewardedConfig
from raypref.align.pair_data import PairData
from raypref.align.watch import StepMetrics
from raypref.core.rows import Row, seed_of
from raypref.demo.world import caption, sample_scenes
from raypref.engine.stream import Selection
from raypref.models.backbone import BackboneConfig, load_denoiser, load_encoder
from raypref.models.families.base import Denoiser
from raypref.models.families.registry import family as family_of
from raypref.models.lora_config import JOINT_ATTENTION, LoraConfig

CPU = torch.device("cpu")
# The objectives that learn from what is stored or drawn, not from rewards of it.
OFFLINE = [name for name, kind in OBJECTIVES.items() if not issubclass(kind, RewardedConfig)]
BASES = {
    "sd15": BackboneConfig(model=str(small.path("sd15")), dtype="float64"),
    "sd15_inpaint": BackboneConfig(
        family="sd15_inpaint", model=str(small.path("sd15-inpaint")), dtype="float64"
    ),
    "sd35m": BackboneConfig(family="sd35m", model=str(small.path("sd3")), dtype="float64"),
    "sdxl": BackboneConfig(family="sdxl", model=str(small.path("sdxl")), dtype="float64"),
    "sdxl_inpaint": BackboneConfig(
        family="sdxl_inpaint", model=str(small.path("sdxl-inpaint")), dtype="float64"
    ),
    "flux": BackboneConfig(family="flux", model=str(small.path("flux")), dtype="float64"),
    "flux_fill": BackboneConfig(
        family="flux_fill", model=str(small.path("flux-fill")), dtype="float64"
    ),
    "z_image": BackboneConfig(family="z_image", model=str(small_z_image.path()), dtype="float64"),
    "flux2_klein": BackboneConfig(
        family="flux2_klein", model=str(small_flux2_klein.path()), dtype="float64"
    ),
    "qwen_image": BackboneConfig(
        family="qwen_image", model=str(small_qwen_image.path()), dtype="float64"
    ),
}
LORAS = {
    "sd15": LoraConfig(rank=4, alpha=4),
    "sd15_inpaint": LoraConfig(rank=4, alpha=4),
    "sd35m": LoraConfig(rank=4, alpha=8, targets=JOINT_ATTENTION),
    "sdxl": LoraConfig(rank=4, alpha=4),
    "sdxl_inpaint": LoraConfig(rank=4, alpha=4),
    "flux": LoraConfig(rank=4, alpha=8, targets=JOINT_ATTENTION),
    "flux_fill": LoraConfig(rank=4, alpha=8, targets=JOINT_ATTENTION),
    "z_image": LoraConfig(rank=4, alpha=8),
    "flux2_klein": LoraConfig(
        rank=4, alpha=8, targets=(*JOINT_ATTENTION, "attn.to_qkv_mlp_proj", "attn.to_out")
    ),
    "qwen_image": LoraConfig(rank=4, alpha=8, targets=JOINT_ATTENTION),
}
BASE, LORA = BASES["sd15"], LORAS["sd15"]
# Of each objective beside a plain implementation, by the two families that predict differently. The
# second tells what a step is; the first also what a training is: averages, lags, an optimizer.
STEPS = {"sd15": 20, "sd35m": 8}


def rows_of(selected: Selection) -> list[Row]:
    """The rows that workers would read, part by part."""
    return [row for name in selected.ledger.parts() for row in selected.part(name).to_pylist()]


@cache
def photographs(count: int) -> list[tuple[str, Image.Image]]:
    """Caption and image of scenes: fields of colour, made of whole numbers alone.

    What is rendered with fractions differs from processor to processor by a level of 255 here and
    there, and whether a step is clipped could with it.
    """
    rng = np.random.default_rng(3)
    fields = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    pictures = fields.repeat(8, axis=1).repeat(8, axis=2)
    captions = [caption(scene) for scene in sample_scenes(count, 3)]
    return [(text, Image.fromarray(p)) for text, p in zip(captions, pictures, strict=True)]


def twin(photo: Image.Image) -> Image.Image:
    """A photograph blurred and half faded."""
    blurred = photo.filter(ImageFilter.GaussianBlur(2))
    return Image.blend(blurred, blurred.convert("L").convert("RGB"), 0.5)


def hole(number: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """The mask of a photograph's hole: a box of 255 on 0 that no grid of latents fits."""
    left, top = 3 + 5 * (number % 7), 6 + 3 * (number % 5)
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[top : top + 34, left : left + 25] = 255
    return Image.fromarray(mask)


# What tests train with of 512 tokens of FLUX, and of CLIP's 77 and T5's 256 of SD-3.5: the rest is
# padding.
TOKENS = {"sd35m": 77 + 16, "flux": 16, "flux_fill": 16, "flux2_klein": 64}


@cache
def pairs(count: int = 10, *, family: str = "sd15") -> PairData:
    """Photographs against their twins, encoded in float64; with holes where the family inpaints."""

    encoder = load_encoder(BASES[family], device=CPU)
    surroundings = None
    if family_of(family).inpaints:
        seen = [photo for _, photo in photographs(count)], [hole(n) for n in range(count)]
        ways = seen, ([mirrored(photo) for photo in seen[0]], [mirrored(mask) for mask in seen[1]])
        surroundings = torch.stack([encoder.surroundings(*way) for way in ways], 1)
    moments = []
    for _, photo in photographs(count):
        sides = [photo, twin(photo)]
        images = [image for side in sides for image in (side, mirrored(side))]
        values = encoder.image_moments(images)
        moments.append(values.reshape(2, FLIPS, *values.shape[1:]))
    return PairData(
        moments=torch.stack(moments),
        embeddings=read_texts(encoder, [text for text, _ in photographs(count)], family=family),
        unconditional=read_texts(encoder, [""], family=family)[0],
        surroundings=surroundings,
    )


def read_texts(encoder: Any, captions: list[str], *, family: str) -> Any:
    """What a family reads of captions, cut to as many tokens as tests train with."""
    made = encoder.text_embeddings(captions)
    if family not in TOKENS:
        return made
    return replace(made, sequence_BLD=made.sequence_BLD[:, : TOKENS[family]])


def facts_of(stage: TrainingConfig, count: int = 10) -> dict[str, torch.Tensor]:
    """The columns of the pairs that an objective reads: numbers within 0 and 1, each its own."""
    found = {}
    for name in {*stage.facts, *stage.columns}:
        generator = torch.Generator().manual_seed(seed_of(0, "fact", name))
        found[name] = torch.rand(count, generator=generator, dtype=torch.float64)
    return found


def mirrored(image: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return Image.fromarray(np.asarray(image)[:, ::-1].copy())


def denoiser(family: str = "sd15") -> Denoiser:
    """A fresh small network in float64, without adapters."""
    return load_denoiser(BASES[family], device=CPU)


def run(
    stage: TrainingConfig,
    folder: str,
    *,
    start: str | None = None,
    seed: int = 0,
    group: Ranks | None = None,
    network: Denoiser | None = None,
    on_step: object = None,
    family: str = "sd15",
    lora: LoraConfig | None = None,
    data: PairData | None = None,
) -> list[StepMetrics]:
    """Train on `pairs()` unless others are given, the family's LoRA likewise."""
    return train(
        network or denoiser(family),
        replace(data or pairs(family=family), facts=facts_of(stage)),
        stage,
        lora or LORAS[family],
        name="stage",
        draws=f"test-{stage.objective}",
        seed=seed,
        folder=folder,
        start=start,
        group=group or Alone(),
        on_step=on_step or (lambda metrics: None),  # type: ignore[arg-type]
        hole=family_of(family).hole,
    )


def training(objective: str = "dpo", **settings: Any) -> TrainingConfig:
    """The settings of a training with an objective."""
    return OBJECTIVES[objective](objective=objective, **settings)

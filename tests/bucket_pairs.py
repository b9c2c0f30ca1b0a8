"""Pairs of several sizes for training tests, each encoded alone, in float64."""

from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from training import BASES, CPU, hole, mirrored, photographs, read_texts, twin

from raypref.align.latents import FLIPS
from raypref.align.pair_data import PairData
from raypref.models.backbone import load_encoder
from raypref.models.families.registry import family as family_of

SIZES = [(64, 64), (80, 48), (48, 80)]  # width and height; of a square of 64 and a step of 16


@cache
def photographs_in_buckets(count: int = 10) -> list[tuple[str, Image.Image]]:
    """Caption and image of scenes, the sizes in turns: fields of colour, of whole numbers alone."""
    rng = np.random.default_rng(5)
    found = []
    for number, (text, _) in enumerate(photographs(count)):
        width, height = SIZES[number % len(SIZES)]
        fields = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        found.append((text, Image.fromarray(fields.repeat(8, axis=0).repeat(8, axis=1))))
    return found


@cache
def pairs_in_buckets(family: str) -> PairData:
    """These photographs against their twins; with holes where the family inpaints."""
    encoder = load_encoder(BASES[family], device=CPU)
    photos = photographs_in_buckets()
    moments, around = [], []
    for number, (_, photo) in enumerate(photos):
        images = [way for side in (photo, twin(photo)) for way in (side, mirrored(side))]
        values = encoder.image_moments(images)
        moments.append(values.reshape(2, FLIPS, *values.shape[1:]))
        if family_of(family).inpaints:
            mask = hole(number, photo.size)
            around.append(encoder.surroundings(images[:2], [mask, mirrored(mask)]))
    return PairData(
        moments=flat(moments),
        embeddings=read_texts(encoder, [text for text, _ in photos], family=family),
        unconditional=read_texts(encoder, [""], family=family)[0],
        surroundings=flat(around) if around else None,
        grids=torch.tensor([values.shape[-2:] for values in moments]),
    )


def flat(values: list[Tensor]) -> Tensor:
    """Tensors of several h and w in one: h and w are one dimension, padded with NaN."""
    most = max(value.shape[-2] * value.shape[-1] for value in values)
    whole = values[0].new_full((len(values), *values[0].shape[:-2], most), torch.nan)
    for place, value in zip(whole, values, strict=True):
        place[..., : value.shape[-2] * value.shape[-1]] = value.flatten(-2)
    return whole

"""Makes a study: draws prompts, writes their images under random names, and what is asked."""

from __future__ import annotations

import io
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from raypref.core.config import InputError, build
from raypref.core.ledger import write_bytes
from raypref.core.rows import seed_of
from raypref.images.decode import BadImage, ImageConfig, center_square, decode
from raypref.study.config import StudyConfig
from raypref.study.folder import (
    DAMAGED,
    FILE,
    IMAGES,
    PAGE,
    Item,
    Study,
    StudyImage,
    Task,
    evenly,
    every_two,
    write_study,
)
from raypref.study.page import static_page
from raypref.study.stock import ShownPrompt, Stock, stock_of

LIMITS = build(ImageConfig, {"min_side": 1, "max_aspect": 8.0})
TILES = 8  # a side: an attention check's image is scrambled in so many tiles
ALIKE = 0.01  # relative difference of two shapes that rounding explains


class MadeStudy(NamedTuple):
    """What came of `make_study`."""

    study: Study
    cropped: int  # items whose images had other shapes


def make_study(named: Sequence[str], config: StudyConfig) -> MadeStudy:
    """Make a study in the folder `config.out`.

    Both images of an item get one size, that of the smaller; where their shapes differ the centre
    square of each is shown. All are written anew as WebP, without metadata: neither size, format
    nor file tells a model.

    Args:
        named: runs or folders.
        config: what to ask.

    Raises:
        InputError: the folder holds a study, there is nothing to compare, or an image is broken.
    """
    folder = Path(config.out).expanduser().absolute()
    if (folder / FILE).exists():
        raise InputError(f"{folder} holds a study, maybe with votes; take another out=FOLDER")
    stock = stock_of(named, config)
    shown = _drawn(stock, config)
    compared = every_two(stock.models, config.versus)
    images = {model: dict(stock.read(model, {*shown})) for model in stock.models}
    items, tasks, cropped = [], [], 0
    for id_, about in shown.items():
        for pair in compared:
            sides = [_decoded(images[model][id_], model, id_) for model in pair]
            fitted = same_size(*sides)
            cropped += fitted[0].width * sides[0].height != fitted[0].height * sides[0].width
            items.append(_item(folder, id_, about, dict(zip(pair, fitted, strict=True)), config))
    tasks += [Task(_name(), item.id, "item") for item in items]
    again = sorted(items, key=lambda item: _draw(item, config.seed))[: config.repeats]
    tasks += [Task(_name(), item.id, "repeat") for item in again]
    for number in range(config.checks):
        id_ = [*shown][number % len(shown)]
        model = stock.models[number // len(shown) % len(stock.models)]
        whole = _decoded(images[model][id_], model, id_)
        pair_of = {model: whole, DAMAGED: scrambled(whole, seed=config.seed)}
        items.append(_item(folder, id_, shown[id_], pair_of, config))
        tasks.append(Task(_name(), items[-1].id, "check"))
    secrets.SystemRandom().shuffle(tasks)  # their order in the file tells raters nothing
    study = Study(
        folder=folder,
        id=secrets.token_hex(8),
        token=secrets.token_urlsafe(16),
        **{name: getattr(config, name) for name in ("title", "question", "ties", "per_rater")},
        seed=config.seed,
        items={item.id: item for item in items},
        tasks={task.id: task for task in tasks},
    )
    if config.static:
        write_bytes(str(folder / PAGE), static_page(study).encode())
    write_study(study, {"of": list(named), **config.model_dump()})
    return MadeStudy(study, cropped)


def _drawn(stock: Stock, config: StudyConfig) -> dict[str, ShownPrompt]:
    """The prompts that are asked about."""
    there = sorted({about.category for about in stock.prompts.values()})
    for category in config.categories:
        if category not in there:
            known = ", ".join(filter(None, there)) or "none"
            raise InputError(f"categories: there is no '{category}'; there are {known}")
    wanted = {
        id_: about
        for id_, about in stock.prompts.items()
        if not config.categories or about.category in config.categories
    }
    taken = evenly(wanted, count=config.prompts, seed=config.seed)
    if config.repeats > len(taken) * len(every_two(stock.models, config.versus)):
        raise InputError(f"repeats={config.repeats}: there are fewer pairs")
    return {id_: wanted[id_] for id_ in taken}


def _draw(item: Item, seed: int) -> int:
    models = sorted(side.model for side in item.sides)
    return seed_of(seed, "study repeat", item.prompt_id, *models)


def _name() -> str:
    return secrets.token_hex(8)


def _decoded(data: bytes, model: str, id_: str) -> Image.Image:
    try:
        return decode(data, LIMITS)
    except BadImage as error:
        raise InputError(f"the image {id_} of {model} is unusable: {error}") from None


def same_size(one: Image.Image, other: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Both images in the size of the smaller; squares cut from the centre where shapes differ."""
    if one.size == other.size:
        return one, other
    shapes = one.width / one.height, other.width / other.height
    if abs(shapes[0] / shapes[1] - 1) > ALIKE:
        side = min(*one.size, *other.size)
        return center_square(one, side), center_square(other, side)
    size = min(one.size, other.size)
    first, second = (
        image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        for image in (one, other)
    )
    return first, second


def scrambled(image: Image.Image, *, seed: int) -> Image.Image:
    """The image cut into 64 tiles that change places: no model draws like it."""
    width, height = image.width // TILES or 1, image.height // TILES or 1
    boxes = [
        (x * width, y * height, (x + 1) * width, (y + 1) * height)
        for y in range(image.height // height)
        for x in range(image.width // width)
    ]
    mixed = np.random.default_rng(seed_of(seed, "scrambled")).permutation(len(boxes))
    result = image.copy()
    for box, place in zip(boxes, mixed.tolist(), strict=True):
        result.paste(image.crop(boxes[place]), box)
    return result


def _item(
    folder: Path,
    id_: str,
    about: ShownPrompt,
    images: Mapping[str, Image.Image],
    config: StudyConfig,
) -> Item:
    """Write both images of an item, in an order that tells nothing."""
    sides = []
    for model, image in images.items():
        sides.append(StudyImage(_name(), model))
        buffer = io.BytesIO()
        lossless = config.quality == 100
        quality = 25 if lossless else config.quality  # of lossless WebP: the effort
        image.save(buffer, "WEBP", lossless=lossless, quality=quality, method=2)
        write_bytes(str(folder / IMAGES / f"{sides[-1].image}.webp"), buffer.getvalue())
    first, second = sorted(sides)  # by names that were drawn
    return Item(_name(), id_, about.prompt, about.category, (first, second))

"""A small captioned photographic world, drawn in code: the data of the embedded default.

A `Scene` says what a photograph shows, `caption` puts it into words, `photograph.render` takes it.
Combinations of shape, colour and ground are split into training and held-out ones.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from raypref.core.config import InputError
from raypref.demo.cache import cached
from raypref.demo.photograph import fade, render_scene
from raypref.demo.scene import COLOURS, GROUNDS, MATERIALS, MOMENTS, SHAPES, Scene, Thing

MOST_PROMPTS = 1000  # far below the number of held-out captions, so that drawing them ends


def caption(scene: Scene) -> str:
    """The scene in words, as "a photo of a shiny red ball on grass at dusk"."""
    things = " next to ".join(_phrase(thing) for thing in scene.things)
    return f"a photo of {things} on {scene.ground}{MOMENTS[scene.moment]}"


def things(text: str) -> list[Thing]:
    """The things a caption of this world names, from left to right, without their materials."""
    looks = itertools.product(COLOURS, SHAPES)
    found = [(text.find(f"{colour} {shape}"), Thing(shape, colour)) for colour, shape in looks]
    return [thing for place, thing in sorted(found, key=lambda f: f[0]) if place >= 0]


def words() -> list[str]:
    """Every word that captions use, for the tokenizers of the embedded checkpoints."""
    glue = ["a", "an", "photo", "of", "next", "to", "on", *"".join(MOMENTS.values()).split()]
    return list(dict.fromkeys([*glue, *COLOURS, *SHAPES, *MATERIALS, *GROUNDS]))


def is_held_out(shape: str, colour: str, ground: str) -> bool:
    """Whether a combination is kept out of training; about one in eight is."""
    return hashlib.sha256(f"{shape} {colour} {ground}".encode()).digest()[0] % 8 == 0


def sample_scenes(count: int, seed: int, *, held_out: bool = False) -> list[Scene]:
    """Scenes of one side of the split; a smaller count is a prefix of a larger one."""
    return list(islice(_draw_scenes(seed, held_out), count))


def held_out_prompts(count: int) -> list[str]:
    """Distinct captions of held-out scenes; a smaller count is a prefix of a larger one.

    Raises:
        InputError: more than `MOST_PROMPTS` are asked for.
    """
    if count > MOST_PROMPTS:
        raise InputError(f"the tiny world gives at most {MOST_PROMPTS} prompts, not {count}")
    captions = (caption(scene) for scene in _draw_scenes(20_000, held_out=True))
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts[next(captions)] = None
    return list(prompts)


def write_photos(folder: Path, count: int, *, seed: int) -> None:
    """Write `photo_0000.png`, ... of training scenes, and `captions.csv` (file, caption).

    One photograph in five is faded nearly to grey, so that a filter for colour has work to do.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file", "caption")]
    for index, scene in enumerate(sample_scenes(count, seed)):
        rng = np.random.default_rng((seed, index))
        photo = render_scene(scene, seed=int(rng.integers(2**31)))
        if rng.random() < 0.2:
            photo = fade(photo)
        rows.append((f"photo_{index:04d}.png", caption(scene)))
        Image.fromarray(photo).save(folder / rows[-1][0])
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def photos_folder(count: int, seed: int) -> Path:
    """The folder that `write_photos` makes, drawn on first use and kept in the cache."""
    return cached(f"photos-{count}-{seed}", lambda folder: write_photos(folder, count, seed=seed))


def _phrase(thing: Thing) -> str:
    # Nobody says "matte": it is the material that goes without saying.
    material = "" if thing.material == "matte" else f"{thing.material} "
    noun = f"{material}{thing.colour} {thing.shape}"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _draw_scenes(seed: int, held_out: bool) -> Iterator[Scene]:
    rng = np.random.default_rng(seed)
    looks = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    while True:
        ground = str(rng.choice(GROUNDS))
        moment = str(rng.choice([*MOMENTS], p=(0.55, 0.2, 0.1, 0.15)))
        count = 2 if rng.random() < 0.25 else 1
        side = [look for look in looks if is_held_out(*look, ground) == held_out]
        chosen = [side[i] for i in rng.choice(len(side), count, replace=False)]
        materials = rng.choice(MATERIALS, count, p=(0.4, 0.3, 0.15, 0.15)).tolist()
        things = [Thing(*look) for look in chosen]
        things = [replace(t, material=m) for t, m in zip(things, materials, strict=True)]
        yield Scene(tuple(things), ground, moment)

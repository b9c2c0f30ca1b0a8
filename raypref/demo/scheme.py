"""What stands behind the scheme `tiny:`: embedded models, photographs, prompts, holes, a critic."""

from __future__ import annotations

from pathlib import Path

from raypref.core.config import InputError
from raypref.demo import checkpoints, labelled, world
from raypref.demo.accuracy import PromptAccuracy
from raypref.demo.holes import COUNT, holes_folder
from raypref.sources.prompts import Prompt

PROMPTS = "prompts"
HOLES = "holes"
# By name a folder with data, made on first use.
FOLDERS = {
    "world": lambda: world.photos_folder(count=256, seed=0),
    "labelled": labelled.labelled_folder,
    "ratings": labelled.ratings_folder,
}


def model(name: str) -> Path:
    """The local folder or file of an embedded model; InputError where there is none."""
    return checkpoints.path(name)


def photographs(name: str) -> Path:
    """A folder with captioned photographs, labelled pairs or ratings, made on first use."""
    if name not in FOLDERS:
        there = ", ".join(f"tiny:{known}" for known in FOLDERS)
        raise InputError(f"source.path=tiny:{name}: there is {there}")
    return FOLDERS[name]()


def prompts(name: str, *, limit: int | None) -> list[Prompt]:
    """Prompts that no photograph shows, by category; 64 where there is no limit."""
    if name != PROMPTS:
        raise InputError(f"evaluate.prompts=tiny:{name}: there is tiny:{PROMPTS}")
    return [_prompt(text) for text in world.held_out_prompts(limit or 64)]


def holes(name: str, *, limit: int | None) -> Path:
    """A folder of held-out photographs with masks and captions; 64 where there is no limit."""
    if name != HOLES:
        raise InputError(f"evaluate.holes=tiny:{name}: there is tiny:{HOLES}")
    return holes_folder(limit or COUNT)


def _prompt(text: str) -> Prompt:
    count = len(world.things(text))
    return Prompt(text, {"category": "one thing" if count == 1 else f"{count} things"})


def prompt_accuracy(weights: str) -> PromptAccuracy:
    """The transform that judges whether an image shows what its prompt names."""
    return PromptAccuracy(weights)

"""What a photograph of the tiny world can show: the vocabulary, and scenes made of it."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {
    "red": (0.80, 0.04, 0.04),
    "orange": (0.95, 0.30, 0.02),
    "yellow": (0.95, 0.72, 0.03),
    "green": (0.04, 0.48, 0.10),
    "blue": (0.03, 0.14, 0.80),
    "purple": (0.30, 0.05, 0.55),
    "pink": (0.95, 0.25, 0.50),
}
SHAPES = ("ball", "cube", "cone", "cylinder", "ring", "star", "heart", "mug")
MATERIALS = ("matte", "shiny", "striped", "spotted")
GROUNDS = ("grass", "sand", "snow", "wood", "stone", "water")
MOMENTS = {"day": "", "dusk": " at dusk", "night": " at night", "cloudy": " on a cloudy day"}


@dataclass(frozen=True)
class Thing:
    """One object: names out of SHAPES, COLOURS and MATERIALS."""

    shape: str
    colour: str
    material: str = "matte"


@dataclass(frozen=True)
class Scene:
    """What a photograph shows: one thing, or two from left to right; where; and when."""

    things: tuple[Thing, ...]
    ground: str
    moment: str = "day"

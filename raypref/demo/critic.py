"""The classifier that judges what a picture of the tiny world shows."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from raypref.demo.scene import COLOURS, SHAPES, Thing

MOST_THINGS = 2  # in one photograph, from left to right


class Critic(nn.Module):
    """Tells what a picture shows: for each place from left to right, shape and colour.

    Input [B, 3, 64, 64] in -1..1; returns two logits [B, 2 (places), classes], the last class of
    each being "nothing there".
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 96)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after)]
            layers += [nn.SiLU(), nn.Conv2d(after, after, 3, padding=1), nn.BatchNorm2d(after)]
            layers += [nn.SiLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.shape = nn.Linear(96 * 4 * 4, MOST_THINGS * (len(SHAPES) + 1))
        self.colour = nn.Linear(96 * 4 * 4, MOST_THINGS * (len(COLOURS) + 1))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of shapes and of colours."""
        features = self.features(x_BCHW)
        size = (len(x_BCHW), MOST_THINGS, -1)
        return self.shape(features).reshape(size), self.colour(features).reshape(size)

    def things(self, x_BCHW: Tensor) -> list[list[Thing]]:
        """What is seen in each picture, from left to right (materials are not told apart)."""
        shapes, colours = (logits.argmax(-1).tolist() for logits in self(x_BCHW))
        names, paints = [*SHAPES, ""], [*COLOURS, ""]
        return [
            [Thing(names[s], paints[c]) for s, c in zip(*places, strict=True) if names[s]]
            for places in zip(shapes, colours, strict=True)
        ]

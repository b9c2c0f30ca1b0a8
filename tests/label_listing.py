"""A source of labels for tests: images are files, labels come from a list in the test."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raypref.core.config import load
from raypref.core.ledger import in_folder
from raypref.pairs.kinds import maker_of
from raypref.pairs.labelled import LabelledPairs
from raypref.run.config import RunConfig
from raypref.sources.base import LabelledImage, Layout, Pair, Ref
from raypref.sources.layouts import REGISTRY


def picture(number: int, size: tuple[int, int] = (80, 72)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Listing:
    """A source of labels: images are files, labels come from a list in the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.entries: list[Pair | LabelledImage] = []
        folder.mkdir()
        listing = lambda store: iter(self.entries)  # noqa: E731
        monkeypatch.setitem(REGISTRY, "listed", Layout(pairs=listing, images=listing))

    def pair(self, label: float | None, **facts: object) -> str:
        """Add a pair of new images; returns its id."""
        number = len(self.entries)
        refs = []
        for side in (0, 1):
            name = f"{number}-{side}.png"
            (self.folder / name).write_bytes(png(picture(2 * number + side)))
            refs.append(Ref(name))
        facts = {"id": f"row {number}", **facts}
        given = {"prompt": f"prompt {number}", "first": refs[0], "second": refs[1]}
        self.entries.append(Pair(**{**given, "label": label, **facts}))
        return str(facts["id"])

    def config(self, *words: str, kind: str = "labelled") -> RunConfig:
        start = [f"pairs.kind={kind}", f"source.path={self.folder}", "source.layout=listed"]
        return load(RunConfig, "tiny", [*start, *words])


def made(config: RunConfig, folder: Path) -> LabelledPairs:
    maker = maker_of(config, place=in_folder(str(folder)))
    assert isinstance(maker, LabelledPairs)
    maker.run(config.stream)
    return maker

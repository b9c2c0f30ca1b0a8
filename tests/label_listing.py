"""A source of labels for tests: images are files, labels come from a list in the test."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raypref.core.config import load
from raypref.core.ledger import in_folder
from raypref.engine.stream import Streamed
from raypref.engine.worker import Worker, needs_of, shared_worker
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


def stream_here(rows, *, label, stages, branches, config):
    """The pass as a worker and the driver do it, in this process."""
    (branch,) = branches
    branch.ledger.begin()
    worker = Worker(
        lambda block: (rows.part(block["part"][0].as_py()), block["part"][0].as_py()),
        stages,
        branches,
        rows.schema(),
        shared_worker(needs_of(stages)),
    )
    for name in rows.parts():
        if not branch.ledger.has_part(name):
            answer = worker(pa.table({"part": [name]})).to_pylist()[0]
            assert not answer["no_room"]
    branch.ledger.commit(expected=rows.count(), counts=branch.ledger.reasons())
    return Streamed(branch.ledger.reasons(), 0.0)


def made(config: RunConfig, folder: Path) -> LabelledPairs:
    maker = maker_of(config, place=in_folder(str(folder)))
    assert isinstance(maker, LabelledPairs)
    maker.run(config.stream)
    return maker

"""A worker without Ray: branches of one pass do not see each other."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from raypref.core.config import InputError, Resources
from raypref.core.ledger import Ledger
from raypref.core.rows import REJECT, Row, reject
from raypref.engine.worker import Branch, Worker, needs_of, shared_worker
from raypref.images import decode as images
from raypref.images.decode import as_image, encode_png
from raypref.rewards import base
from raypref.rewards.base import Decode

IMAGES = pa.table(
    {
        "id": [f"{n}" for n in range(5)],
        "image": [encode_png(Image.new("RGB", (8, 8), (40 * n, 0, 0))) for n in range(5)],
    }
)


class Red:
    """Reads the red of an image; rejects the image where it is `unwanted`."""

    name = "red"
    reads: tuple[str, ...] = ("image",)

    def __init__(self, column: str, *, unwanted: int, workers: int) -> None:
        self.column = column
        self.unwanted = unwanted
        self.writes = pa.schema([(column, pa.int64())])
        self.resources = Resources(workers=workers, batch=2)

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        for row in rows:
            red = row["image"].getpixel((0, 0))[0]
            if red == self.unwanted:
                reject(row, self.name, "unwanted", f"{red}")
            row[self.column] = red


def through(folder: Path, *workers: int) -> list[Ledger]:
    """Send the images through a branch per number of workers; the first rejects 0, then 40, ..."""
    ledgers = [Ledger(str(folder / f"{n}"), {}) for n in range(len(workers))]
    branches = [
        Branch([Red(f"red{n}", unwanted=40 * n, workers=need)], ledgers[n], [f"red{n}"])
        for n, need in enumerate(workers)
    ]
    worker = Worker(
        lambda block: (block, None), [Decode("image")], branches, IMAGES.schema, Resources()
    )
    answer = worker(IMAGES).to_pylist()[0]
    assert answer["rows"] == 5 and answer["rejected"] == len(workers) and not answer["no_room"]
    return ledgers


def test_what_a_person_must_change_is_an_answer_and_no_crash(tmp_path: Path) -> None:
    class Refuses(Red):
        def __call__(self, rows: list[Row]) -> None:
            raise InputError(f"row '{rows[0]['id']}' is wrong")

    branch = Branch([Refuses("red", unwanted=0, workers=0)], Ledger(str(tmp_path), {}), ["red"])
    worker = Worker(lambda block: (block, None), [], [branch], IMAGES.schema, Resources())
    assert worker(IMAGES).to_pylist()[0]["refused"].endswith("is wrong")


@pytest.mark.parametrize("workers", [(1, 1), (1, 0), (0, 0)], ids=["models", "one model", "none"])
def test_what_one_branch_rejects_goes_its_way_in_the_other(workers, tmp_path: Path) -> None:
    for number, ledger in enumerate(through(tmp_path, *workers)):
        table = ledger.table()
        assert table.column_names == ["id", f"red{number}", *REJECT.names]
        assert table[f"red{number}"].to_pylist() == [0, 40, 80, 120, 160]
        reasons = [None] * 5
        reasons[number] = "unwanted"
        assert table["reject_reason"].to_pylist() == reasons


def test_an_image_is_decoded_once_for_all_branches(tmp_path: Path, monkeypatch) -> None:
    decoded = []
    monkeypatch.setattr(
        base, "open_png", lambda data, was=base.open_png: decoded.append(data) or was(data)
    )
    through(tmp_path, 1, 0, 1)
    assert len(decoded) == IMAGES.num_rows


class Mirror:
    """A model that hands on the mirror image, decoded."""

    name = "mirror"
    reads: tuple[str, ...] = ("image",)
    writes = pa.schema([("mirrored", pa.binary())])
    resources = Resources(batch=2)

    def setup(self) -> None:
        """Nothing to load."""

    def prepare(self, rows: list[Row]) -> list[Image.Image]:
        return [as_image(row[self.reads[0]]) for row in rows]

    def compute(self, batch: list[Image.Image]) -> list[Image.Image]:
        return [ImageOps.mirror(image) for image in batch]

    def finish(self, rows: list[Row], out: list[Image.Image]) -> None:
        for row, image in zip(rows, out, strict=False):
            row[self.writes.names[0]] = image


class Back(Mirror):
    """Mirrors it once more."""

    reads: tuple[str, ...] = ("mirrored",)
    writes = pa.schema([("back", pa.binary())])


@pytest.mark.parametrize("gpus", [0.0, 1.0], ids=["alone", "helped"])
def test_an_image_becomes_png_where_it_is_written_and_nowhere_before(
    gpus: float, tmp_path: Path, monkeypatch
) -> None:
    encoded = []
    monkeypatch.setattr(
        images, "encode_png", lambda image, was=encode_png: encoded.append(image) or was(image)
    )
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(p) for p in rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)]
    rows = {"id": [f"{n}" for n in range(5)], "image": list(map(encode_png, pictures))}
    table, ledger = pa.table(rows), Ledger(str(tmp_path), {})
    worker = Worker(
        lambda block: (block, None),
        [Mirror()],
        [Branch([Back()], ledger, ["back"])],
        table.schema,
        Resources(num_gpus=gpus),
    )
    answer = worker(table).to_pylist()[0]
    assert answer["rows"] == 5 and answer["busy"] > 0
    assert ledger.table()["back"].to_pylist() == rows["image"], "the same bytes"
    assert len(encoded) == 5, "what is not kept is never encoded"


def test_stages_of_equal_settings_share_a_model() -> None:
    class Holds:
        def __init__(self, config: str, num_gpus: float) -> None:
            self.config = config
            self.resources = Resources(num_gpus=num_gpus)

    stages = [Holds("a", 0.3), Holds("b", 0.2), Holds("a", 0.3)]
    assert shared_worker(needs_of(stages)).num_gpus == 0.5


class Sleeping:
    """Sleeps longer to prepare a batch than to compute it, and logs the latter."""

    name = "sleeping"
    reads: tuple[str, ...] = ("n",)
    writes = pa.schema([("double", pa.int64())])
    resources = Resources(batch=4)

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def setup(self) -> None:
        """Nothing to load."""

    def prepare(self, rows: list[Row]) -> list[int]:
        time.sleep(0.04)
        return [row["n"] for row in rows]

    def compute(self, batch: list[int]) -> list[int]:
        began = time.monotonic()
        time.sleep(0.03)
        self.spans.append((began, time.monotonic()))
        return [2 * n for n in batch]

    def finish(self, rows: list[Row], out: list[int]) -> None:
        for row, double in zip(rows, out, strict=False):
            row["double"] = double

    def share(self) -> float:
        """Of the time from the first batch to the last, how much was computed."""
        return self.computed() / (max(self.spans)[1] - min(self.spans)[0])

    def computed(self) -> float:
        return sum(end - began for began, end in self.spans)


def test_the_device_computes_while_other_batches_are_prepared(tmp_path: Path) -> None:
    """Short form of benchmarks/streaming_overlap.py."""
    blocks = [
        pa.table({"id": [f"{n:03d}" for n in numbers], "n": numbers})
        for numbers in (list(range(start, start + 16)) for start in range(0, 128, 16))
    ]
    plain, model = Sleeping(), Sleeping()
    expected = pa.concat_tables(blocks).to_pylist()
    for start in range(0, 64, 4):
        some = expected[start : start + 4]
        plain.finish(some, plain.compute(plain.prepare(some)))
    ledger = Ledger(str(tmp_path), {})
    need = Resources(num_gpus=1, num_cpus=3)
    branches = [Branch([model], ledger, ["n", "double"])]
    worker = Worker(lambda block: (block, None), [], branches, blocks[0].schema, need)
    with ThreadPoolExecutor(4) as threads:  # as many as such a worker has blocks in hand
        answers = [table.to_pylist()[0] for table in threads.map(worker, blocks)]
    assert sorted(ledger.table()["double"].to_pylist()) == [2 * n for n in range(128)]
    assert len(ledger.parts()) == len(blocks) == len({answer["part"] for answer in answers})
    spans = sorted(model.spans)
    assert all(end <= began for (_, end), (began, _) in itertools.pairwise(spans)), "one at a time"
    assert plain.share() < 0.5 and model.share() > 1.5 * plain.share()
    busy = sum(answer["busy"] for answer in answers)
    assert model.computed() <= busy < 1.2 * model.computed(), "nothing but the device's time"

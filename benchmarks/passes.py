"""Pass 1 (decode, colorfulness) of JPEGs: ours against a process pool, Ray Data and Daft.

The pool does the same decode and formula on the same files and nothing else: the most these cores
can do. Interleaved rounds, medians of images/s. Before that, the core time of pass 2 (read, decode,
crop, PickScore's input) beside that of an older commit.

    python benchmarks/passes.py [PHOTOGRAPHS] [ROUNDS] [COMMIT]
"""

from __future__ import annotations

import csv
import itertools
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from transformers import CLIPImageProcessorPil

from raypref.core.ledger import Ledger
from raypref.curate.transforms import Crop, MeasurePhotograph
from raypref.engine.cluster import start_ray
from raypref.engine.stream import Selection, StreamConfig, stream
from raypref.images.colorfulness import colorfulness
from raypref.images.decode import ImageConfig, as_image, center_square, decode
from raypref.sources.index import SourceConfig, entries, write_index

SIZE = 512
WORKERS = 2
BATCH = 16  # images that CLIP's input is made of at once
IMAGES = ImageConfig(size=SIZE)


def make(folder: Path, count: int) -> None:
    """JPEGs with the detail of photographs: smooth shapes and noise."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        rough = rng.integers(0, 255, (16, 16, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(rough).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        pixels = smooth + rng.normal(0, 12, (SIZE, SIZE, 1))
        name = f"{i:06d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
        rows.append((name, f"photograph {i}"))
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *rows])


def one(path: str) -> float:
    """What every way does with a file."""
    return colorfulness(center_square(decode(Path(path).read_bytes(), IMAGES), SIZE))


def pass_2_seconds(folder: Path, photographs: int) -> float:
    """Core seconds per photograph of pass 2 beside its model: read, decode, crop, CLIP's input."""
    source = SourceConfig(path=str(folder))
    rows = list(itertools.islice(entries(source), photographs))
    measure, crop = MeasurePhotograph(source, IMAGES), Crop(source, IMAGES)
    measure.setup()
    crop.setup()
    measure(rows)
    processor = CLIPImageProcessorPil()
    began = time.process_time()
    crop(rows)
    for start in range(0, len(rows), BATCH):
        images = [as_image(row["chosen"]) for row in rows[start : start + BATCH]]
        processor(images=images, return_tensors="pt")
    return (time.process_time() - began) / len(rows)


# The same at a commit where images went from stage to stage as PNG.
BEFORE = """
import itertools, sys, time
from transformers import CLIPImageProcessorPil
from raypref.curate.photos import Crop, Measure
from raypref.curate.sources import SourceConfig, entries
from raypref.images import ImageConfig, open_png
folder, count, size, batch = sys.argv[1], *map(int, sys.argv[2:])
source, images = SourceConfig(path=folder), ImageConfig(size=size)
rows = list(itertools.islice(entries(source), count))
measure, crop = Measure(source, images), Crop(source, images, kept=False)
measure.setup()
crop.setup()
measure(rows)
processor = CLIPImageProcessorPil()
began = time.process_time()
crop(rows)
for start in range(0, count, batch):
    opened = [open_png(row["chosen"]) for row in rows[start : start + batch]]
    processor(images=opened, return_tensors="pt")
print((time.process_time() - began) / count)
"""


def show_pass_2(folder: Path, commit: str, *, photographs: int = 192, rounds: int = 3) -> None:
    """Print the core time per photograph of both, in turn, and the median ratio."""
    git = ["git", "-C", str(Path(__file__).parent)]
    with tempfile.TemporaryDirectory() as scratch:
        old = Path(scratch, "old")
        subprocess.run([*git, "worktree", "add", "-q", "--detach", str(old), commit], check=True)
        try:
            command = [sys.executable, "-c", BEFORE, str(folder)]
            command += map(str, (photographs, SIZE, BATCH))
            path = {**os.environ, "PYTHONPATH": str(old)}
            pairs = []
            for _ in range(rounds):
                done = subprocess.run(
                    command, cwd=old, env=path, check=True, stdout=subprocess.PIPE, text=True
                )
                pairs.append((pass_2_seconds(folder, photographs), float(done.stdout)))
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(old)], check=True)
    ours, before = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"pass 2, beside its model: {ours:.1f} core ms per photograph, {before:.1f} at {commit}")
    print(f"median ratio of {rounds} rounds: {ratio:.2f}")


def by_pool(paths: list[str]) -> float:
    """Seconds of a pool of two that is already started."""
    with get_context("spawn").Pool(WORKERS) as pool:
        pool.map(one, paths[:64], chunksize=1)
        began = time.perf_counter()
        pool.map(one, paths, chunksize=16)
        took = time.perf_counter() - began
        pool.close()
        pool.join()
    return took


def by_us(folder: Path, paths: list[str]) -> tuple[float, float]:
    """Seconds of the pass as curation runs it: with workers already started, and in all.

    The first is told from when the parts were written, the first one of each worker left out.
    """
    source, config = SourceConfig(path=str(folder)), StreamConfig(progress_seconds=3600)
    with tempfile.TemporaryDirectory() as run:
        index, measured = Ledger(f"{run}/index", {}), Ledger(f"{run}/measured", {})
        write_index(source, index, part_rows=config.part_rows)
        began = time.perf_counter()
        stream(
            Selection(index),
            stages=[MeasurePhotograph(source, IMAGES)],
            ledger=measured,
            keep=MeasurePhotograph.writes.names,
            config=config,
        )
        took = time.perf_counter() - began
        assert measured.reasons() == {"ok": len(paths)}
        parts = [Path(measured.path, name) for name in measured.parts()]
        written = sorted(
            (part.stat().st_mtime, measured.part(part.name).num_rows) for part in parts
        )
    rows = sum(count for _, count in written[WORKERS:])
    return (written[-1][0] - written[WORKERS - 1][0]) * len(paths) / rows, took


def by_read_images(paths: list[str]) -> float:
    """Ray Data's own reader: decoded arrays through the object store."""

    def measure(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"c": np.array([colorfulness(Image.fromarray(image)) for image in batch["image"]])}

    began = time.perf_counter()
    ray.data.read_images(paths, mode="RGB").map_batches(measure, batch_size=16).materialize()
    return time.perf_counter() - began


def by_daft(paths: list[str]) -> float:
    """Daft with a batch function on paths."""
    import daft

    @daft.func.batch(return_dtype=daft.DataType.float64(), use_process=True, batch_size=64)
    def measure(column: daft.Series) -> list[float]:
        return [one(path) for path in column.to_pylist()]

    frame = daft.from_arrow(pa.table({"path": paths})).into_partitions(8)
    began = time.perf_counter()
    frame.with_column("c", measure(frame["path"])).collect()
    return time.perf_counter() - began


def main() -> None:
    """Interleave the ways and print the medians."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    if count < 10 * StreamConfig().part_rows:
        sys.exit("too few photographs to tell a rate from the times of parts")
    logging.disable(logging.INFO)
    start_ray()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, count)
        paths = sorted(map(str, folder.glob("*.jpg")))
        ways: dict[str, Callable[[], tuple[float, ...]]] = {
            f"multiprocessing.Pool({WORKERS})": lambda: (by_pool(paths),),
            "raypref": lambda: by_us(folder, paths),
            "ray.data.read_images": lambda: (by_read_images(paths),),
        }
        try:
            import daft  # noqa: F401
        except ImportError:
            print("Daft is not installed: pip install daft")
        else:
            ways["Daft"] = lambda: (by_daft(paths),)
        show_pass_2(folder, sys.argv[3] if len(sys.argv) > 3 else "9b16dd5")
        took: dict[str, list[float]] = {}
        for _ in range(rounds):
            for way, run in ways.items():
                for label, seconds in zip((way, f"{way}, with its start"), run(), strict=False):
                    took.setdefault(label, []).append(seconds)
    pool = took[f"multiprocessing.Pool({WORKERS})"]
    for way, times in took.items():
        rate = count / statistics.median(times)
        ratio = statistics.median(p / s for p, s in zip(pool, times, strict=True))
        print(f"{way:<28} {rate:8.1f} images/s   {ratio:.2f} of the pool")


if __name__ == "__main__":
    main()

"""Very many labelled pairs of small images: rates, memory, exact counts, a kill in the middle.

Makes Parquet files of Pick-a-Pic's columns, imports them as `pairs.kind=labelled` does, and prints
what each process and the object store held at most. The import runs in a process of its own, is
killed once some parts are there, and runs again.

    python benchmarks/labelled.py [PAIRS] [FOLDER]
"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from raypref.core.config import load
from raypref.core.ledger import in_folder
from raypref.engine.cluster import start_ray
from raypref.engine.stream import StreamConfig
from raypref.pairs.kinds import maker_of
from raypref.pairs.labelled import LabelledPairs
from raypref.run.config import RunConfig

ROWS = 1000  # per file
SIDE = 96
MODELS = [f"generator {number}" for number in range(12)]
KILL_AT = 0.3  # of the parts


def write_file(path: Path) -> None:
    """A file of labelled pairs: one in ten a tie, one in fifty with a broken image."""
    seed = int(path.stem)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(ROWS):
        one, other = rng.choice(len(MODELS), 2, replace=False)
        won = float(rng.random() < 1 / (1 + np.exp((other - one) / 4)))
        label = 0.5 if number % 10 == 9 else won
        images = [_jpeg(rng) for _ in range(2)]
        if number % 50 == 7:
            images[1] = b"no image"
        rows.append(
            {
                "caption": f"prompt {number} of file {seed}",
                "jpg_0": images[0],
                "jpg_1": images[1],
                "label_0": label,
                "label_1": 1 - label,
                "image_0_uid": f"{seed}-{number}-0",
                "image_1_uid": f"{seed}-{number}-1",
                "has_label": True,
                "are_different": True,
                "model_0": MODELS[one],
                "model_1": MODELS[other],
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".part"), row_group_size=100)
    path.with_suffix(".part").rename(path)


def expected(count: int) -> Counter[str]:
    """What the labels must end as."""
    broken = sum(number % 50 == 7 for number in range(ROWS))
    ties = ROWS // 10
    each = {"pair": ROWS - ties - broken, "tie": ties, "unreadable": broken}
    return Counter({reason: n * (count // ROWS) for reason, n in each.items()})


def _jpeg(rng: np.random.Generator) -> bytes:
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def maker_in(folder: Path) -> LabelledPairs:
    """What imports the files of a folder into its `run/`."""
    words = ["pairs.kind=labelled", "source.layout=pickapic", f"source.path={folder / 'files'}"]
    maker = maker_of(load(RunConfig, "tiny", words), place=in_folder(str(folder / "run")))
    assert isinstance(maker, LabelledPairs)
    return maker


def import_pairs(folder: Path) -> None:
    """The import, and what it took; a process of its own."""
    from scale import Watch

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    start_ray()
    watch = Watch()
    watch.start()
    maker_in(folder).run(StreamConfig())
    watch.stop.set()
    watch.join()
    for name, peak in sorted(watch.peaks.items(), key=lambda item: -item[1]):
        print(f"{name:<42} {peak:7.0f} MiB at most")


def main() -> None:
    """Make the files, import them with a kill in between, check the counts."""
    if sys.argv[1:2] == ["--import"]:
        import_pairs(Path(sys.argv[2]))
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    if count % ROWS:
        sys.exit(f"the pairs come in files of {ROWS}; {count} is no multiple")
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    (folder / "files").mkdir(parents=True, exist_ok=True)
    paths = [folder / "files" / f"{number:05d}.parquet" for number in range(count // ROWS)]
    with Pool(2) as pool:
        pool.map(write_file, [path for path in paths if not path.exists()], chunksize=1)
    command = [sys.executable, __file__, "--import", str(folder)]
    began = time.monotonic()
    first = subprocess.Popen(command)
    parts = folder / "run" / "curate" / "loaded"
    wanted = KILL_AT * count / 64
    while first.poll() is None and len(list(parts.glob("part-*"))) < wanted:
        time.sleep(0.5)
    first.kill()
    first.wait()
    there = len(list(parts.glob("part-*")))
    print(f"killed with {there} parts after {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    subprocess.run(command, check=True)
    took = time.monotonic() - began
    maker = maker_in(folder)
    counts = Counter[str](maker.pairs.manifest()["counts"])
    assert counts == expected(count), counts
    assert maker.pairs.count() == counts["pair"]
    assert maker.inputs.count() == counts.total() == count
    ids = Counter(row["id"] for row in maker.inputs.rows(["id"]))
    assert len(ids) == count, "labels were lost or counted twice"
    print(f"\n{count} labels, the rest after the kill in {took:.0f} s: {dict(counts)}")


if __name__ == "__main__":
    main()

"""Curation of very many small JPEGs on the embedded models: rates, memory, and that no row is lost.

Makes shards of JPEGs, runs every pass and the waves that are needed, and prints what each process
and the object store held at most. Nothing is a stub: photographs are decoded, scored, repainted.

    python benchmarks/scale.py [PHOTOGRAPHS] [FOLDER]
"""

from __future__ import annotations

import io
import logging
import sys
import tarfile
import tempfile
import threading
import time
from collections import defaultdict
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import psutil
import ray
from PIL import Image

from raypref.core.config import load
from raypref.core.ledger import in_folder
from raypref.curate.graph import Curation
from raypref.demo import world
from raypref.engine.cluster import start_ray
from raypref.run.config import RunConfig

SHARD = 1000
SIDE = 96


def write_shard(path: Path) -> None:
    """A thousand photographs: the world's, each with a tint and noise of its own."""
    seed = int(path.stem)
    rng = np.random.default_rng(seed)
    photos = sorted(world.photos_folder(count=256, seed=0).glob("*.png"))
    with tarfile.open(path.with_suffix(".part"), "w") as tar:
        for i in range(SHARD):
            with Image.open(photos[int(rng.integers(len(photos)))]) as image:
                pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)))
            tinted = pixels * rng.uniform(0.6, 1.2, 3) + rng.normal(0, 4, pixels.shape)
            buffer = io.BytesIO()
            Image.fromarray(tinted.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
            caption = f"photograph {i} of shard {seed}".encode()
            for end, data in (("jpg", buffer.getvalue()), ("txt", caption)):
                member = tarfile.TarInfo(f"{seed:05d}{i:04d}.{end}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    path.with_suffix(".part").rename(path)


class Watch(threading.Thread):
    """Notes the most that each kind of process and the object store ever held."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, float] = defaultdict(float)
        self.stop = threading.Event()

    def run(self) -> None:
        """Look twice a second."""
        while not self.stop.wait(0.5):
            self._note("driver", psutil.Process())
            for process in psutil.process_iter(["cmdline"]):
                name = " ".join(process.info["cmdline"] or [""])
                if name.startswith("ray::"):
                    self._note(name.split("(")[0].split()[0][:40], process)
            free = ray.available_resources().get("object_store_memory", 0.0)
            used = ray.cluster_resources().get("object_store_memory", 0.0) - free
            self.peaks["object store"] = max(self.peaks["object store"], used / 2**20)

    def _note(self, name: str, process: psutil.Process) -> None:
        try:
            held = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            return
        self.peaks[name] = max(self.peaks[name], held)


def main() -> None:
    """Make the shards, curate, check the counts and print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    if count % SHARD:
        sys.exit(f"the photographs come in shards of {SHARD}; {count} is no multiple")
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    paths = [shards / f"{number:05d}.tar" for number in range(count // SHARD)]
    world.photos_folder(count=256, seed=0)  # made once, not by every process
    with Pool(2) as pool:
        pool.map(write_shard, [path for path in paths if not path.exists()], chunksize=1)
    config = load(
        RunConfig, "tiny", [f"source.path={shards}", "select.top_k=512", "perturb.steps=4"]
    )
    start_ray()
    watch = Watch()
    watch.start()
    began = time.monotonic()
    curation = Curation(config, place=in_folder(str(folder / f"run-{time.time_ns()}")))
    work = curation.run(config.stream)
    took = time.monotonic() - began
    watch.stop.set()
    watch.join()
    ended = curation.photos.manifest()["counts"]
    ids = {row["id"] for row in curation.photos.rows(["id"])}
    assert work.amount == len(ids) == sum(ended.values()) == count, "rows were lost"
    print(f"\n{count} photographs in {took:.0f} s, {count / took:.0f} photographs/s; {ended}")
    for name in ("index", "measured", "scored", "twins", "photos", "rejects", "pairs"):
        ledger = getattr(curation, name)
        size = sum(part.stat().st_size for part in Path(ledger.path).iterdir())
        rows, parts = ledger.count(), len(ledger.parts())
        print(f"{name}: {rows} rows in {parts} parts, {size / max(rows, 1):.0f} bytes per row")
    for name, peak in sorted(watch.peaks.items(), key=lambda item: -item[1]):
        print(f"{name:<42} {peak:7.0f} MiB at most")


if __name__ == "__main__":
    main()

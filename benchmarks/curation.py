"""Curation images/s: Ray Data against a plain loop, in one run, interleaved.

The plain loop does what released scripts do: one process, one image at a time, through saliency,
inpainting and PickScore. Ours streams the same photographs through the same models in actor pools.
Start-up (processes, imports, weights) is given apart from the steady rate after the first block.

    python benchmarks/curation.py [PHOTOS] [ROUNDS]
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from raypref.core.config import load
from raypref.core.ledger import Ledger
from raypref.core.rows import INDEX, Transform
from raypref.curate.perturb import Inpaint
from raypref.curate.saliency import Saliency
from raypref.curate.transforms import Crop, MeasurePhotograph
from raypref.engine.batches import in_batches
from raypref.engine.cluster import start_ray
from raypref.engine.stream import StreamConfig, stream
from raypref.engine.worker import shared_worker
from raypref.rewards.base import Score
from raypref.run.config import RunConfig
from raypref.sources.index import entries

SCORES = {"chosen": "pickscore_chosen", "rejected": "pickscore_rejected"}


def stages(config: RunConfig) -> list[Transform]:
    return [
        Crop(config.source, config.images),
        Saliency(config.saliency),
        Inpaint(config.perturb, seed=config.seed),
        Score(config.pickscore, columns=SCORES, prompt="caption"),
    ]


def photographs(config: RunConfig, count: int) -> pa.Table:
    rows = list(itertools.islice(entries(config.source), count))
    measure = MeasurePhotograph(config.source, config.images)
    measure.setup()
    measure(rows)
    return pa.Table.from_pylist(rows, schema=pa.schema([*INDEX, *measure.writes]))


def plain(config: RunConfig, photos: pa.Table) -> float:
    """Images/s of the plain loop, models already loaded."""
    loop = stages(config)
    for stage in loop:
        stage.setup()
    began = time.perf_counter()
    for row in photos.to_pylist():
        for stage in loop:
            in_batches(stage, [row])
    return photos.num_rows / (time.perf_counter() - began)


def streamed(config: RunConfig, photos: pa.Table) -> tuple[float, float]:
    """Images/s after the first block, and the seconds until the first block was there."""
    block = 8
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder, {})
        began = time.time()
        keep = ["key", *SCORES.values()]
        streaming = StreamConfig(block_rows=block, progress_seconds=1e9)
        stream(photos, stages=stages(config), ledger=ledger, keep=keep, config=streaming)
        written = sorted(Path(folder, part).stat().st_mtime for part in ledger.parts())
    # When every worker has its first block done, all that is left is steady work.
    ahead = shared_worker([stage.resources for stage in stages(config)]).workers
    rate = (photos.num_rows - ahead * block) / (written[-1] - written[ahead - 1])
    return rate, written[0] - began


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 48
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    config = load(RunConfig, "tiny")
    # Batches are padded to their size: a loop over single images must ask for batches of one.
    one_by_one = [f"{stage}.resources.batch=1" for stage in ("saliency", "perturb", "pickscore")]
    photos = photographs(config, count)
    start_ray()
    ours, theirs, starts = [], [], []
    for _ in range(rounds):
        theirs.append(plain(load(RunConfig, "tiny", one_by_one), photos))
        rate, start = streamed(config, photos)
        ours.append(rate)
        starts.append(start)
        print(f"  plain {theirs[-1]:.2f} images/s, streamed {rate:.2f}, first block {start:.0f} s")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"{count} photographs, preset tiny, {os.cpu_count()} cores, {rounds} rounds, medians:")
    print(f"  plain loop      {statistics.median(theirs):.2f} images/s")
    print(f"  streamed        {statistics.median(ours):.2f} images/s")
    print(f"  ratio           {statistics.median(ratios):.2f}")
    print(f"  time to start   {statistics.median(starts):.0f} s (actors, imports, weights)")


if __name__ == "__main__":
    main()

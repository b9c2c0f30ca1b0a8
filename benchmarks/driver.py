"""What the driver does by itself for each photograph: the part of curation that no node shortens.

Listing of shards, duplicates, the mean, a wave and the tables for people, over ledgers of the given
size; core seconds of this process, so that other work on the machine does not count.

    python benchmarks/driver.py [PHOTOGRAPHS]
"""

from __future__ import annotations

import io
import logging
import math
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypref.core.config import load
from raypref.core.ledger import in_folder
from raypref.core.rows import REJECT
from raypref.curate.graph import Curation
from raypref.curate.select import SOUND, Ranking, mean_colorfulness, next_wave, repeated_ids
from raypref.curate.transforms import MeasurePhotograph
from raypref.run.config import RunConfig
from raypref.sources.index import write_index

SHARD = 1000
PART = 4096  # rows: docs/cost.md, settings for millions
CAPTION = "a photograph of a quiet harbour at dusk, boats and their lights on the water, number "


def write_shards(folder: Path, count: int) -> None:
    """Photographs of no pixels: listing looks at their headers only."""
    for shard in range(count // SHARD):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for i in range(SHARD):
                texts = {"jpg": bytes(512), "txt": f"{CAPTION}{shard * SHARD + i}".encode()}
                for end, data in texts.items():
                    member = tarfile.TarInfo(f"{i:04d}.{end}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def fill(curation: Curation) -> None:
    """Measured, scored and made, in numbers that are drawn: half goes on, to a pair a part."""
    rng = np.random.default_rng(0)
    twins = []
    for ledger in (curation.measured, curation.scored, curation.twins):
        ledger.begin()
    for name in curation.index.parts():
        table = curation.index.part(name).drop_columns(["problem"])
        rows = table.num_rows
        values = {
            "key": [rng.bytes(32).hex() for _ in range(rows)],
            "width": [512] * rows,
            "height": [512] * rows,
            "colorfulness": rng.uniform(0, 100, rows),
            "phash": [None] * rows,
        }
        for field in [*MeasurePhotograph.writes, *REJECT]:
            column = pa.array(values.get(field.name, [None] * rows), field.type)
            table = table.append_column(field, column)
        curation.measured.write_part(table, name)
        half = table.filter(pc.greater(table["colorfulness"], 50.0))
        scores = pa.array(rng.normal(20, 1, half.num_rows), pa.float32())
        half = half.append_column("pickscore", scores)
        curation.scored.write_part(half, name)
        twins.append(half.slice(0, 1))
    images = pa.array([b""] * len(twins), pa.binary())
    made = pa.concat_tables(twins)
    for column in ("chosen", "rejected", "mask"):
        made = made.append_column(column, images)
    curation.twins.write_part(made)
    for ledger in (curation.measured, curation.scored, curation.twins):
        ledger.commit(expected=ledger.count(), counts={})


def main() -> None:
    """Time each part and print microseconds a photograph."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    logging.disable(logging.INFO)
    whole = 0.0

    def timed(what: str, work: Callable[[], object]) -> None:
        nonlocal whole
        began = time.process_time()
        work()
        each = (time.process_time() - began) / count * 1e6
        whole += each
        print(f"{what:<12} {each:6.1f} us a photograph", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, count)
        config = load(RunConfig, "sd15", [f"source.path={folder}", "evaluate.prompts=tiny:prompts"])
        curation = Curation(config, place=in_folder(f"{folder}/run"))
        timed("list", lambda: write_index(config.source, curation.index, part_rows=PART))
        fill(curation)
        timed("duplicates", lambda: repeated_ids(curation.measured))
        timed("mean", lambda: mean_colorfulness(curation.measured, SOUND))
        timed("wave", lambda: next_wave(curation.scored, count // 100, below=math.inf))
        ranking = Ranking(config.select, also=lambda row: True)
        ranking.ranks = {id_: i for i, id_ in enumerate(sorted(curation.twins.done_ids()))}
        timed("tables", lambda: curation.publish(ranking, {}))
    print(f"{'all':<12} {whole:6.1f} us a photograph, {1e8 * whole / 3.6e9:.1f} h for 100 million")


if __name__ == "__main__":
    main()

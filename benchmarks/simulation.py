"""How many pairs are made, and how busy the GPU is, for the paper's funnel.

The real scheduling (waves in rank order, blocks, one worker, ledgers) on models that only sleep.
Of 10,475 photographs 4,041 pass the gap test and 512 are taken (paper section 3.2).

    python benchmarks/simulation.py [SECONDS_A_PAIR]
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray
from sleeping import SleepingInpainter, SleepingReader

from raypref.core.config import Resources, load
from raypref.core.ledger import Ledger, in_folder
from raypref.core.rows import REJECT, Transform
from raypref.curate.graph import Curation
from raypref.engine.cluster import start_ray
from raypref.run.config import RunConfig

PHOTOGRAPHS, PASSING = 10_475, 4_041
READING = 0.15  # of the device's time a pair, spent on reading and writing images


class Simulated(Curation):
    """Curation whose models sleep."""

    seconds: float
    log: Path
    workers: int

    def twin_stages(self) -> list[Transform]:
        """Reading, then the device."""
        device = Resources(workers=self.workers, num_gpus=1, batch=8)
        return [
            SleepingReader(READING * self.seconds),
            SleepingInpainter(0, self.seconds, self.log, device),
        ]


def scored(ledger: Ledger, photographs: int) -> None:
    """Photographs in the order of their scores; which of them pass is drawn."""
    rng = np.random.default_rng(0)
    passes = rng.permutation(np.arange(photographs) < photographs * PASSING / PHOTOGRAPHS)
    rows = [
        dict.fromkeys(REJECT.names)
        | {"id": f"{i:06d}", "key": f"{i:064x}", "caption": "passes" if ok else "fails"}
        | {"pickscore": 25 - i / photographs, "colorfulness": 50.0}
        for i, ok in enumerate(passes)
    ]
    text = [(name, pa.string()) for name in ("id", "key", "caption", *REJECT.names)]
    schema = pa.schema([*text, ("pickscore", pa.float32()), ("colorfulness", pa.float64())])
    ledger.begin()
    ledger.write_part(pa.Table.from_pylist(rows, schema=schema))
    ledger.commit(expected=photographs, counts={})


class Batch(NamedTuple):
    """What a device did at once."""

    worker: int
    start: float  # seconds
    end: float
    rows: int


class Outcome(NamedTuple):
    """What a simulated curation came to."""

    selected: list[str]  # ids in rank order
    made: int  # pairs
    took: float  # seconds from the start of the workers to the last part
    batches: list[Batch]

    @property
    def span(self) -> float:
        """Seconds from a device's first pair to the last."""
        return max(batch.end for batch in self.batches) - min(batch.start for batch in self.batches)

    @property
    def busy(self) -> float:
        """Seconds that devices computed."""
        return sum(batch.end - batch.start for batch in self.batches)


def run(
    folder: Path,
    seconds: float,
    *,
    exhaustive: bool = False,
    workers: int = 1,
    photographs: int = PHOTOGRAPHS,
    top_k: int = 512,
) -> Outcome:
    """Make pairs at a pace."""
    settings = ["source.path=tiny:world", "evaluate.prompts=tiny:prompts"]
    settings += [f"select.top_k={top_k}", f"curate.exhaustive={str(exhaustive).lower()}"]
    config = load(RunConfig, "sd15", settings)
    curation = Simulated(config, place=in_folder(str(folder)))
    curation.seconds, curation.log, curation.workers = seconds, folder / "gpu", workers
    scored(curation.scored, photographs)
    began = time.monotonic()
    ranking, _ = curation.make_twins(config.stream)
    took = time.monotonic() - began
    lines = [line.split() for line in curation.log.read_text().splitlines()]
    return Outcome(
        selected=sorted(ranking.ranks, key=ranking.ranks.__getitem__),
        made=curation.twins.count(),
        took=took,
        batches=[Batch(int(w), float(s), float(e), int(n)) for w, s, e, n in lines],
    )


def main() -> None:
    """Run the lazy way at the given pace and the exhaustive way quickly, and compare."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.25
    ray.init(num_cpus=2, num_gpus=1, logging_level=logging.ERROR, log_to_driver=False)
    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        lazy = run(Path(folder) / "lazy", seconds)
        everything = run(Path(folder) / "all", 0.0005, exhaustive=True)
    assert lazy.selected == everything.selected, "not the same pairs"
    print(f"{len(lazy.selected)} pairs, the same both ways, at {seconds} s a pair")
    print(f"pairs made: {lazy.made} in rank order, {everything.made} exhaustively")
    print(f"device busy: {lazy.busy / lazy.span:.3f} of {lazy.span:.0f} s from its first pair on")
    print(
        f"             {lazy.busy / lazy.took:.3f} of {lazy.took:.0f} s with start of the workers"
    )


if __name__ == "__main__":
    main()

"""How many pairs are made, and how busy the GPU is, for the paper's funnel.

The real scheduling (waves in rank order, blocks, one worker, ledgers) on models that only sleep.
Of 10,475 photographs 4,041 pass the gap test and 512 are taken (paper section 3.2).

    python benchmarks/simulation.py [SECONDS_A_PAIR]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray

from raypref.cluster import start_ray
from raypref.config import Resources, load
from raypref.curate.curate import Curation
from raypref.ledger import Ledger
from raypref.pipeline import RunConfig
from raypref.rows import REJECT, Row, Stage

PHOTOGRAPHS, PASSING = 10_475, 4_041
READING = 0.15  # of the device's time a pair, spent on reading and writing images


class Sleep:
    """Stage: takes its time; one that needs a GPU notes when."""

    reads: tuple[str, ...] = ()

    def __init__(self, name: str, seconds: float, log: Path, resources: Resources) -> None:
        self.name = name
        self.seconds = seconds
        self.log = log
        self.resources = resources
        images = [(column, pa.binary()) for column in ("chosen", "rejected", "mask")]
        numbers = [("pickscore_rejected", pa.float32()), ("colorfulness_rejected", pa.float64())]
        self.writes = pa.schema([*images, *numbers])

    def setup(self) -> None:
        """Nothing to load."""

    def __call__(self, rows: list[Row]) -> None:
        """Fill the columns with next to nothing."""
        if not self.resources.num_gpus:
            time.sleep(self.seconds * len(rows))
            return
        began = time.monotonic()
        time.sleep(self.seconds * len(rows))
        with self.log.open("a") as gpu:
            gpu.write(f"{began} {time.monotonic()}\n")
        for row in rows:
            passes = row["caption"] == "passes"
            row |= {"chosen": b"", "rejected": b"", "mask": b"", "colorfulness_rejected": 0.0}
            row["pickscore_rejected"] = row["pickscore"] - (1.0 if passes else 0.0)


class Simulated(Curation):
    """Curation whose models sleep."""

    seconds: float
    log: Path

    def twin_stages(self) -> list[Stage]:
        """Reading, then the device."""
        reading = Resources(workers=0, batch=8)
        device = Resources(workers=1, num_gpus=1, batch=8)
        return [
            Sleep("read", READING * self.seconds, self.log, reading),
            Sleep("paint", self.seconds, self.log, device),
        ]


def scored(ledger: Ledger) -> None:
    """Photographs in the order of their scores; which of them pass is drawn."""
    rng = np.random.default_rng(0)
    passes = rng.permutation(np.arange(PHOTOGRAPHS) < PASSING)
    rows = [
        dict.fromkeys(REJECT.names)
        | {"id": f"{i:05d}", "key": f"{i:064x}", "caption": "passes" if ok else "fails"}
        | {"pickscore": 25 - i / PHOTOGRAPHS, "colorfulness": 50.0}
        for i, ok in enumerate(passes)
    ]
    text = [(name, pa.string()) for name in ("id", "key", "caption", *REJECT.names)]
    schema = pa.schema([*text, ("pickscore", pa.float32()), ("colorfulness", pa.float64())])
    ledger.begin()
    ledger.write_part(pa.Table.from_pylist(rows, schema=schema))
    ledger.commit(expected=PHOTOGRAPHS, counts={})


class Outcome(NamedTuple):
    """What a simulated curation came to."""

    selected: list[str]  # ids in rank order
    made: int  # pairs
    took: float  # seconds from the start of the workers to the last part
    busy: float  # seconds that the device computed
    span: float  # seconds from its first to its last


def run(folder: Path, seconds: float, *, exhaustive: bool) -> Outcome:
    """Make pairs at a pace."""
    config = load(RunConfig, "sd15", ["source.path=tiny:world", "evaluate.prompts=tiny:prompts"])
    passes = config.curate.model_copy(update={"exhaustive": exhaustive})
    curation = Simulated(config.model_copy(update={"curate": passes}), folder=str(folder))
    curation.seconds, curation.log = seconds, folder / "gpu"
    scored(curation.scored)
    began = time.monotonic()
    ranking, _ = curation.make_twins(config.stream)
    took = time.monotonic() - began
    times = [tuple(map(float, line.split())) for line in curation.log.read_text().splitlines()]
    return Outcome(
        selected=sorted(ranking.ranks, key=ranking.ranks.__getitem__),
        made=curation.twins.count(),
        took=took,
        busy=sum(end - start for start, end in times),
        span=max(end for _, end in times) - min(start for start, _ in times),
    )


def main() -> None:
    """Run the lazy way at the given pace and the exhaustive way quickly, and compare."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.25
    ray.init(num_cpus=2, num_gpus=1, logging_level="ERROR", log_to_driver=False)
    start_ray()
    with tempfile.TemporaryDirectory() as folder:
        lazy = run(Path(folder) / "lazy", seconds, exhaustive=False)
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

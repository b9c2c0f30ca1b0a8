"""The arena of 850,000 simulated labelled pairs: seconds of each step, and memory.

python benchmarks/arena_labels.py [PAIRS]

Generators are drawn as often as HPDv3 has images of theirs, and each is as capable as its place in
a list. The labels come one at a time, as from a layout. The walk is held against that of a
published package (extra `dev`) on the first 20,000 choices.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import numpy as np
import trueskill

from raypref.core.config import build
from raypref.judge.arenas import ArenaJobConfig, read_choices
from raypref.pairs.arena import ArenaConfig, fit, gap, probit_fit
from raypref.pairs.choices import Choices, arena_findings
from raypref.sources.base import Layout, Pair, Ref
from raypref.sources.layouts import REGISTRY
from raypref.sources.store import Store

# Images per model in HPDv3, by its card; here the most capable first.
IMAGES = {
    "Kolors": 49_705,
    "real_images": 57_759,
    "FLUX": 48_927,
    "Infinity": 27_061,
    "Midjourney": 331_955,
    "SD3": 49_266,
    "Hunyuan": 46_133,
    "SDXL": 49_025,
    "HPDv2": 327_763,
    "SD2": 19_124,
    "SD1.4": 18_596,
    "SD1.1": 19_043,
    "VQ-Diffusion": 18_837,
    "GLIDE": 19_989,
    "CogView2": 3_823,
    "FuseDream": 468,
}
COMPARED = 20_000
CONFIG = ArenaConfig()


def labels(count: int) -> Iterator[Pair]:
    """Simulated labels; nine people vote on each pair."""
    rng = np.random.default_rng(0)
    names, share = list(IMAGES), np.array(list(IMAGES.values())) / sum(IMAGES.values())
    capability = np.linspace(33, 17, len(names))
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        sides = rng.choice(len(names), (size, 2), p=share)
        quality = capability[sides] + CONFIG.noise * rng.standard_normal((size, 2))
        better = quality[:, 0] - quality[:, 1]
        votes = (better[:, None] + 3 * rng.standard_normal((size, 9)) > 0).mean(1)
        for row, (both, won) in enumerate(zip(sides.tolist(), votes.tolist(), strict=True)):
            yield Pair(
                prompt="a prompt",
                first=Ref(""),
                second=Ref(""),
                label=float(won > 0.5),
                confidence=abs(2 * won - 1),
                first_model=names[both[0]],
                second_model=names[both[1]],
                vote_share=won,
                id=f"{start + row:09d}",
            )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print what a step took."""
    began = time.perf_counter()
    yield
    print(f"{what:<52} {time.perf_counter() - began:.2f} s", flush=True)


def memory() -> float:
    """The most that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read(count: int) -> Choices:
    """Labels through the command's own reading."""

    def listing(store: Store) -> Iterator[Pair]:
        yield from labels(count)

    REGISTRY["simulated"] = Layout(pairs=listing)
    with TemporaryDirectory() as folder:
        source = {"path": folder, "layout": "simulated"}
        return read_choices(
            build(ArenaJobConfig, {"source": source, "pairs": {"kind": "labelled"}})
        )[0]


def against_the_package(choices: Choices) -> float:
    """How many times as long the package takes for the same walk."""
    chosen, rejected = choices.chosen[:COMPARED], choices.rejected[:COMPARED]
    began = time.perf_counter()
    fit(chosen, rejected, generators=len(choices.names), config=CONFIG)
    ours = time.perf_counter() - began
    environment = trueskill.TrueSkill(tau=0, draw_probability=0)
    ratings = [environment.create_rating() for _ in choices.names]
    began = time.perf_counter()
    for one, other in zip(chosen.tolist(), rejected.tolist(), strict=True):
        if one != other:
            ratings[one], ratings[other] = environment.rate_1vs1(ratings[one], ratings[other])
    return (time.perf_counter() - began) / ours


def main(count: int) -> None:
    """Measure each step once."""
    with timed("simulating the labels"):
        for _ in labels(count):
            pass
    before = memory()
    with timed("simulating, reading, drawing the order"):
        choices = read(count)
    generators = len(choices.names)
    sides = choices.chosen, choices.rejected
    with timed("walk"):
        arena = fit(*sides, generators=generators, config=CONFIG)
    with timed("gaps and their deviations"):
        gap(arena, *sides, CONFIG)
    with timed("batch fit"):
        batch = probit_fit(*sides, generators=generators, config=CONFIG)
    with timed("all that the page says, 2,000 bootstrap samples"):
        arena_findings(choices, CONFIG, seed=0, resamples=2000)
    centred = (arena.mean - arena.mean.mean()) - (batch - batch.mean())
    print(f"{'pairs, generators':<52} {count:,}, {generators}")
    print(f"{'largest difference of walk and batch fit, centred':<52} {np.abs(centred).max():.4f}")
    print(f"{'the package takes, in times of our walk':<52} {against_the_package(choices):.1f}")
    print(f"{'memory: before, the most':<52} {before:.0f} MiB, {memory():.0f} MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 850_000)

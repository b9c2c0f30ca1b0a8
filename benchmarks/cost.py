"""What curation of N photographs to K pairs costs: the model of docs/cost.md as two tables.

    python benchmarks/cost.py [SCORE_SECONDS PAIR_SECONDS [GPU_HOUR]]

First core and GPU hours, then wall time and money on the sized recipes of clusters/. The seconds
that a GPU takes for a PickScore and for a pair, and the price of its hour, are the caller's to
give: they depend on the GPU and the models. Everything else is said where it stands.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

PHOTOGRAPH = 100e3  # bytes of a JPEG of about 512x512
LOOK = 1 / 120  # core seconds: decode, crop, colorfulness (passes.py)
CROP = 1 / 60  # core seconds: decode, crop, PNG and back (passes.py)
LIST = 52e-6  # seconds of the driver: an entry of a shard (driver.py)
TABLES = 18e-6  # seconds of the driver: duplicates, mean, a wave, tables for people (driver.py)
ROWS = (
    500  # bytes per photograph in index, measured, scored and photos: 200 (scale.py) and captions
)
PAIR = 1.0e6  # bytes of a pair: photograph and twin as PNG of 512x512, mask
RETAINED = 0.5  # share above the mean colorfulness
PASSING = 4041 / 10475  # share of pairs whose gap is visible (paper section 3.2)
COPY = 5 * PAIR  # bytes of the driver a selected pair: parts of made pairs read, the pair written
AHEAD = 2 * 64  # pairs a worker makes beyond the last one needed: two blocks (nodes.py)
EFFICIENCY = 0.98  # of 16 devices' time while all have work (nodes.py)
START = 60.0  # seconds of a pass until its workers have their models: assumed
DRIVER = 1e9  # bytes per second that the driver's node reads: assumed


class Cost(NamedTuple):
    """Of one curation."""

    read: float  # bytes
    kept: float  # bytes
    cpu: float  # core seconds
    gpu: float  # GPU seconds
    made: float  # pairs


def cost(
    n: float, k: float, *, score: float, pair: float, exhaustive: bool = False, workers: int = 1
) -> Cost:
    """The model.

    Args:
        n: photographs.
        k: pairs wanted.
        score: GPU seconds of a PickScore.
        pair: GPU seconds of saliency, inpainting and the twin's PickScore.
        exhaustive: a pair of every retained photograph, as the paper did.
        workers: that make pairs.
    """
    retained = RETAINED * n
    made = retained if exhaustive else min(retained, k / PASSING + AHEAD * workers)
    return Cost(
        read=(n + retained + made) * PHOTOGRAPH,
        kept=n * ROWS + made * PAIR,
        cpu=n * LOOK + (retained + made) * CROP,
        gpu=retained * score + made * pair,
        made=made,
    )


class Hardware(NamedTuple):
    """A recipe of clusters/recipes on nodes of clusters/ray-up/aws.yaml."""

    name: str
    cores: int  # of all nodes; pass 1 runs on each
    workers: int  # of passes 2 and 3; each has one GPU if there are any
    readers: int  # cores on which each of them reads in pass 2; one in pass 3
    device: str  # what a worker's models run on: GPU (its seconds are assumed) or CPU
    look: float  # core seconds per photograph of pass 1
    crop: float  # core seconds per photograph before the models of passes 2 and 3
    score: float  # device seconds
    pair: float  # device seconds
    read: float  # bytes per second of all nodes, from the store of the photographs: assumed
    hour: float  # price of an hour of all nodes: assumed


RECIPES = [
    # One g5.12xlarge: four A10G, 40 Gbit/s.
    Hardware("4x24gb", 48, 4, 1, "GPU", LOOK, CROP, 1 / 50, 2.5, 4e9, 4 * 1.40),
    # One p5.48xlarge.
    Hardware("8xh100", 192, 8, 3, "GPU", LOOK, CROP, 1 / 120, 0.6, 10e9, 8 * 7.00),
    # Two m6i.2xlarge and the embedded models, one after the other with reading on a worker's core:
    # 196 scores a second and worker, 576 pairs of four steps in 50 s on two (scale.py).
    Hardware(
        "cpu", 16, 16, 1, "CPU", LOOK, CROP, CROP + 1 / 196, CROP + 2 * 50 / 576, 2e9, 16 * 0.05
    ),
]


class Pass(NamedTuple):
    """A part of a curation on a recipe's hardware."""

    name: str
    seconds: float
    bound: str  # what decides how long it takes


def passes(n: float, k: float, on: Hardware) -> list[Pass]:
    """How long each pass takes: its slowest resource decides, the others overlap with it."""
    made = cost(n, k, score=on.score, pair=on.pair, workers=on.workers).made
    retained = RETAINED * n

    def longest(name: str, start: float, **seconds: float) -> Pass:
        bound = max(seconds, key=seconds.__getitem__)
        return Pass(name, start + seconds[bound], bound)

    def workers(name: str, rows: float, each: float, readers: int) -> Pass:
        shared = on.workers * EFFICIENCY
        return longest(
            name,
            START,
            decode=rows * on.crop / (shared * readers),
            read=rows * PHOTOGRAPH / on.read,
            **{on.device: rows * each / shared},
        )

    return [
        longest("list", 0.0, driver=n * LIST, read=n * PHOTOGRAPH / DRIVER),
        longest("look", 0.0, decode=n * on.look / on.cores, read=n * PHOTOGRAPH / on.read),
        workers("score", retained, on.score, on.readers),
        workers("pairs", made, on.pair, 1),
        Pass("tables", n * TABLES + min(k, made) * COPY / DRIVER, "driver"),
    ]


def hours_and_bytes(score: float, pair: float) -> Iterator[str]:
    """The first table."""
    yield f"{1 / score:.0f} PickScores/s and {pair} s a pair on a GPU"
    yield "| N | K | read | kept | core hours | GPU hours | pairs made | GPU hours, exhaustive |"
    yield "|---|---|---|---|---|---|---|---|"
    for n in (1e4, 1e5, 1e6, 1e7, 1e8):
        for k in (512.0, n / 100):
            ours = cost(n, k, score=score, pair=pair)
            all_ = cost(n, k, score=score, pair=pair, exhaustive=True)
            yield (
                f"| {n:,.0f} | {k:,.0f} | {ours.read / 1e9:,.1f} GB | {ours.kept / 1e9:,.1f} GB "
                f"| {ours.cpu / 3600:,.1f} | {ours.gpu / 3600:,.1f} | {ours.made:,.0f} "
                f"| {all_.gpu / 3600:,.0f} |"
            )


def time_and_money(recipes: list[Hardware]) -> Iterator[str]:
    """The second table."""
    yield "| recipe | N | K | list | look | score | pairs | tables | all | cost |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for on in recipes:
        for n, k in ((1e6, 512), (1e6, 1e4), (1e8, 512), (1e8, 1e6)):
            each = passes(n, k, on)
            hours = sum(one.seconds for one in each) / 3600
            cells = " | ".join(f"{one.seconds / 3600:.2f} h {one.bound}" for one in each)
            whole = f"{hours:.1f} h | ${hours * on.hour:,.1f}"
            yield f"| {on.name} | {n:,.0f} | {k:,.0f} | {cells} | {whole} |"


def main() -> None:
    """Print both tables."""
    given = [float(word) for word in sys.argv[1:]]
    score, pair = given[:2] or (1 / 300, 0.6)
    recipes = RECIPES
    if given:
        recipes = [
            on._replace(
                score=score, pair=pair, hour=on.workers * given[2] if given[2:] else on.hour
            )
            for on in RECIPES
            if on.device == "GPU"
        ]
    print("\n".join([*hours_and_bytes(score, pair), "", *time_and_money(recipes)]))


if __name__ == "__main__":
    main()

"""What curation of N photographs to K pairs costs: the model of docs/cost.md as tables.

    python benchmarks/cost.py [SCORE_SECONDS PAIR_SECONDS [GPU_HOUR]]
    python benchmarks/cost.py --card results/results.jsonl [GPU_HOUR]

First core and GPU hours, then wall time and money on the sized recipes of clusters/. The seconds
that a GPU takes for a PickScore and for a pair are those of `CARDS`, the caller's, or the figures
that `gpu.py` measured on a card. Everything else is said where it stands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PHOTOGRAPH = 100e3  # bytes of a JPEG of about 512x512
LOOK = 1 / 120  # core seconds: decode, crop, colorfulness (passes.py)
CROP = 0.0085  # core seconds: read, decode, crop, the model's input (passes.py)
PAIR_CPU = (
    0.106  # core seconds of a pair beside CROP, ahead of the device and after it (docs/cost.md)
)
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
AGAIN = 8  # photographs scored again per pair wanted, where first scores are quick (first wave)
SAMPLE = 1024  # photographs scored again to measure how far quick scores are off
RESULT = 0.014  # core seconds of the driver per shard or block that is done (readers.py)
SHARD, BLOCK = 4096, 64  # rows of them: docs/cost.md, settings for millions
EFFICIENCY = 0.98  # of 16 devices' time while all have work (nodes.py)
START = 60.0  # seconds of a pass until its workers have their models: assumed
DRIVER = 1e9  # bytes per second that the driver's node reads: assumed


class Card(NamedTuple):
    """What a GPU takes, seconds."""

    score: float  # a PickScore in float32
    quick: float  # one in TF32
    pair: (
        float  # saliency, inpainting (50 steps of SD-1.5, float16), the twin's PickScore in float32
    )
    origin: str  # who says so


# Figures that `gpu.py` measures go here, with card and date in `origin`; docs/cost.md shows them.
CARDS = {
    # Roofline of exact counts: a pair is 0.28 s of UNet (51 passes of 2 x 0.804 TFLOP), 0.02 of
    # VAE, 4.5 ms of saliency and 7.7 of PickScore.
    "H100": Card(1 / 130, 1 / 700, 0.312, "predicted"),
    # At 60% of the peak of float32 (31 TFLOP/s), and of the 35 of TF32; a pair as on an RTX 3090.
    "A10G": Card(1 / 50, 1 / 55, 2.5, "assumed"),
}


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
        cpu=n * LOOK + (retained + made) * CROP + made * PAIR_CPU,
        gpu=retained * score + made * pair,
        made=made,
    )


class Hardware(NamedTuple):
    """A recipe of clusters/recipes on nodes of clusters/ray-up/aws.yaml."""

    name: str
    cores: int  # of all nodes; pass 1 runs on each
    workers: int  # of passes 2 and 3; each has one GPU if there are any
    readers: float  # cores that read for each of them in pass 2
    device: str  # what a worker's models run on, GPU or CPU
    look: float  # core seconds per photograph of pass 1
    crop: float  # core seconds per photograph before the models of passes 2 and 3
    score: float  # device seconds
    pair: float  # device seconds
    read: float  # bytes per second of all nodes, from the store of the photographs: assumed
    hour: float  # price of an hour of all nodes: assumed
    pair_cpu: float = PAIR_CPU  # core seconds of a pair beside `crop`
    cpus: float = 1  # cores of a worker, which read and finish in pass 3
    again: float | None = None  # device seconds of an exact score where first ones are quick
    # Core seconds of the CPU per row while a worker holds its device. None since transforms have
    # three phases (streaming_overlap.py: 0.995 of the time is the device's, 1.000 of a pair's);
    # before, 11.3 ms of a score and 106 ms of a pair.
    score_lock: float = 0.0
    pair_lock: float = 0.0


def of_cards(cards: dict[str, Card]) -> list[Hardware]:
    """The recipes, with what their GPUs take."""
    small, large = cards["A10G"], cards["H100"]
    h100 = Hardware(
        "8xh100", 192, 8, 3, "GPU", LOOK, CROP, large.score, large.pair, 10e9, 8 * 7.00, cpus=3
    )
    return [
        # One g5.12xlarge: four A10G, 40 Gbit/s.
        Hardware("4x24gb", 48, 4, 1, "GPU", LOOK, CROP, small.score, small.pair, 4e9, 4 * 1.40),
        h100,  # one p5.48xlarge
        # The same with pickscore.quick=tf32 and pickscore.readers=pool, on the cores of the node.
        h100._replace(
            name="8xh100, quick, pool",
            readers=(h100.cores - h100.workers * h100.cpus) / h100.workers,
            score=large.quick,
            again=large.score,
        ),
        # Two m6i.2xlarge and the embedded models, one after the other with reading on a worker's
        # core: 196 scores a second and worker, 576 pairs of four steps in 50 s on two (scale.py).
        Hardware(
            *("cpu", 16, 16, 1, "CPU", LOOK, CROP, CROP + 1 / 196, CROP + 2 * 50 / 576),
            *(2e9, 16 * 0.05),
            pair_cpu=0,
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

    def workers(
        name: str, rows: float, *, cpu: float, device: float, readers: float, result: int
    ) -> Pass:
        shared = on.workers * EFFICIENCY
        return longest(
            name,
            START,
            decode=rows * cpu / (shared * readers),
            read=rows * PHOTOGRAPH / on.read,
            driver=rows / result * RESULT,
            **{on.device: device / shared},
        )

    first = retained * (on.score + on.score_lock)
    again = 0.0 if on.again is None else min(retained, AGAIN * k + SAMPLE)
    exact = again * ((on.again or 0.0) + on.score_lock)
    pairs = made * (on.pair + on.pair_lock)
    return [
        longest("list", 0.0, driver=n * LIST, read=n * PHOTOGRAPH / DRIVER),
        longest(
            "look",
            0.0,
            decode=n * on.look / on.cores,
            read=n * PHOTOGRAPH / on.read,
            driver=n / SHARD * RESULT,
        ),
        workers(
            "score",
            retained + again,
            cpu=on.crop,
            device=first + exact,
            readers=on.readers,
            result=SHARD,
        ),
        workers(
            "pairs",
            made,
            cpu=on.crop + on.pair_cpu,
            device=pairs,
            readers=on.cpus,
            result=BLOCK,
        ),
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


def measured(results: Path) -> Card:
    """What `gpu.py` found on a card: the best batch of each figure.

    Args:
        results: the `results.jsonl` that it wrote.
    """
    figures = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    full = [f for f in figures if f["size"] == "full" and isinstance(f["value"], int | float)]

    def values(section: str, name: str, variant: str) -> list[float]:
        found = [
            float(f["value"])
            for f in full
            if (f["section"], f["name"]) == (section, name) and f["variant"].startswith(variant)
        ]
        if not found:
            sys.exit(f"{results}: no figure '{name}' [{variant}...]; run gpu.py build {section}")
        return found

    first = full[0]
    return Card(
        score=1 / max(values("score", "PickScores", "float32")),
        quick=1 / max(values("score", "PickScores", "TF32")),
        pair=min(values("inpaint", "device time per twin", "batch ")),
        origin=f"{first['card']}, measured {first['time'][:10]}",
    )


def main() -> None:
    """Print both tables."""
    words = sys.argv[1:]
    if words[:1] == ["--card"]:
        card, words = measured(Path(words[1])), words[2:]
    elif words:
        card, words = Card(float(words[0]), float(words[0]), float(words[1]), "given"), words[2:]
    else:
        card = CARDS["H100"]
    recipes = of_cards(CARDS if card in CARDS.values() else dict.fromkeys(CARDS, card))
    if card not in CARDS.values():
        recipes = [on for on in recipes if on.device == "GPU"]
    if words:
        recipes = [on._replace(hour=on.workers * float(words[0])) for on in recipes]
    print(f"{card.origin}:")
    print("\n".join([*hours_and_bytes(card.score, card.pair), "", *time_and_money(recipes)]))


if __name__ == "__main__":
    main()

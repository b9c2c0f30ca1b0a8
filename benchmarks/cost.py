"""What curation of N photographs to K pairs costs: the model of docs/cost.md as a table.

    python benchmarks/cost.py [SCORE_SECONDS PAIR_SECONDS]

The seconds that a GPU takes for a PickScore and for a pair are the caller's to give: they depend on
the GPU and the models. Everything else was measured (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import sys
from typing import NamedTuple

PHOTOGRAPH = 100e3  # bytes of a JPEG of about 512x512
LOOK = 1 / 120  # core seconds: decode, crop, colorfulness (passes.py)
CROP = 1 / 60  # core seconds: decode, crop, PNG and back (passes.py)
ROWS = 500  # bytes a photograph in index, measured, scored and photos: 200 (scale.py) and captions
PAIR = 1.0e6  # bytes of a pair: photograph and twin as PNG of 512x512, mask
RETAINED = 0.5  # share above the mean colorfulness
PASSING = 4041 / 10475  # share of pairs whose gap is visible (paper section 3.2)
AHEAD = 2 * 64  # pairs made beyond the last one needed: a block a worker, here of two


class Cost(NamedTuple):
    """Of one curation."""

    read: float  # bytes
    kept: float  # bytes
    cpu: float  # core seconds
    gpu: float  # GPU seconds
    made: float  # pairs


def cost(n: float, k: float, *, score: float, pair: float, exhaustive: bool = False) -> Cost:
    """The model.

    Args:
        n: photographs.
        k: pairs wanted.
        score: GPU seconds of a PickScore.
        pair: GPU seconds of saliency, inpainting and the twin's PickScore.
        exhaustive: a pair of every retained photograph, as the paper did.
    """
    retained = RETAINED * n
    made = retained if exhaustive else min(retained, k / PASSING + AHEAD)
    return Cost(
        read=(n + retained + made) * PHOTOGRAPH,
        kept=n * ROWS + made * PAIR,
        cpu=n * LOOK + (retained + made) * CROP,
        gpu=retained * score + made * pair,
        made=made,
    )


def main() -> None:
    """Print the table."""
    score, pair = map(float, sys.argv[1:3]) if len(sys.argv) > 2 else (1 / 300, 0.6)
    print(f"{1 / score:.0f} PickScores/s and {pair} s a pair on a GPU")
    print("| N | K | read | kept | core hours | GPU hours | pairs made | GPU hours, exhaustive |")
    print("|---|---|---|---|---|---|---|---|")
    for n in (1e4, 1e5, 1e6, 1e7, 1e8):
        for k in (512.0, n / 100):
            ours = cost(n, k, score=score, pair=pair)
            all_ = cost(n, k, score=score, pair=pair, exhaustive=True)
            print(
                f"| {n:,.0f} | {k:,.0f} | {ours.read / 1e9:,.1f} GB | {ours.kept / 1e9:,.1f} GB "
                f"| {ours.cpu / 3600:,.1f} | {ours.gpu / 3600:,.1f} | {ours.made:,.0f} "
                f"| {all_.gpu / 3600:,.0f} |"
            )


if __name__ == "__main__":
    main()

"""Seconds per optimizer step of every objective, beside those of Diffusion-DPO.

Embedded SD-1.5 on one core, 16 samples a step, 8 at a time. Seconds are the process's own on the
processor, as in `training.py`. In a round every objective is timed in turn, each against the `dpo`
of its round; the ratio printed is the median over the rounds.

    python benchmarks/objectives.py [ROUNDS [OBJECTIVE ...]]    # no OBJECTIVE: all
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace

import torch
from plain_loop import photographs
from training import PAIRS, cached, case, time_ours

from raypref.align.objectives.registry import OBJECTIVES
from raypref.align.online_config import RewardedConfig

STEPS = 3  # timed, after one that warms up
# What learns from rewards takes a decoder and a scorer, which would be timed.
OFFLINE = {n: kind for n, kind in OBJECTIVES.items() if not issubclass(kind, RewardedConfig)}


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    torch.set_num_threads(1)
    what = replace(case("tiny"), steps=dict.fromkeys(OFFLINE, STEPS))
    data = cached(what.base, photographs(PAIRS, what.side))
    names = {name for kind in OFFLINE.values() for name in kind.model_construct().columns}
    facts = {name: torch.rand(len(data), dtype=torch.float64) for name in (*names, "score")}
    facts["prompt"] = torch.arange(len(data)) // 2  # two images per prompt: `raft` keeps the better
    data = replace(data, facts=facts)
    seconds: dict[str, list[float]] = {
        "dpo": [],
        **{name: [] for name in sys.argv[2:] or OFFLINE},
    }
    for seed in range(rounds):
        for name, found in seconds.items():
            found.append(1 / time_ours(what, name, data, seed=seed)[0])
    print("| objective | s per step | times dpo |\n|---|---|---|")
    for name, found in seconds.items():
        ratios = [own / dpo for own, dpo in zip(found, seconds["dpo"], strict=True)]
        print(f"| `{name}` | {statistics.median(found):.2f} | {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    main()

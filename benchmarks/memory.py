"""The tables of docs/gpu.md: predicted peak GiB per step, of presets and recipes on their cards.

python benchmarks/memory.py
"""

from __future__ import annotations

from pathlib import Path

from raypref.core.config import load
from raypref.run.config import RunConfig
from raypref.run.memory_plan import CARDS, predicted_gib, too_large

RECIPES = Path(__file__).parents[1] / "clusters" / "recipes"
ON = {  # GB of the card that each names
    "sd15": 24,
    "4x24gb.toml": 24,
    "sd35m": 24,
    "sdxl": 24,
    "8xh100.toml": 80,
    "8xh100-sd35m.toml": 80,
    "fyp_sd15": 24,
    "fyp_flux": 80,
    "flux": 80,
    "z_image": 80,
    "flux2_klein": 24,
    "qwen_image": 80,
}
# All rewards and trainings that the presets have settings for.
GIVEN = (
    "source.path=/photos",
    "evaluate.prompts=/prompts.txt",
    "saliency.weights=/u2net.pth",
    'trainings=["stage1", "stage2", "sft"]',
    'metrics.rewards=["pickscore", "imagereward", "unifiedreward", "hpsv3", "deqa", "aesthetic", '
    '"hpsv2", "clipscore", "vqascore", "realism"]',
)


# One sample at a time: what a base in fewer bits is for.
SMALL = (
    *(
        f"train.{name}.{given}"
        for name in ("stage1", "stage2", "sft")
        for given in ("micro_batch=1", "gradient_checkpointing=true")
    ),
    *("train.stage1.rollout_batch=4", "cache.resources.batch=1", "evaluate.resources.batch=1"),
)
QUANTISED = ("flux", "z_image", "qwen_image")


def predictions() -> dict[str, dict[str, float]]:
    """GiB by step, by preset or recipe."""
    found = {}
    for name in ON:
        source = str(RECIPES / name) if name.endswith(".toml") else name
        found[name] = predicted_gib(load(RunConfig, source, GIVEN))
    return found


def table() -> list[str]:
    """As Markdown; of the passes that score, the one that takes most."""
    found = predictions()
    for gib in found.values():
        for prefix, said in (
            ("candidates, ", "candidates, the largest reward"),
            ("scores ", "scores, the largest pass"),
        ):
            if scores := [gib.pop(step) for step in list(gib) if step.startswith(prefix)]:
                gib[said] = max(scores)
    steps = dict.fromkeys(step for gib in found.values() for step in gib)
    return [
        f"| step | {' | '.join(f'{name}, {card} GB' for name, card in ON.items())} |",
        f"|---|{'---|' * len(ON)}",
        *(
            f"| {step} | {' | '.join(str(gib.get(step, '')) for gib in found.values())} |"
            for step in steps
        ),
        f"| free on the card | {' | '.join(f'{CARDS[card]}' for card in ON.values())} |",
    ]


def quantised_table() -> list[str]:
    """The steps that hold the network of a preset, by how it is stored, with `SMALL`."""
    steps = ("cache", "stage1", "stage2", "sft", "images")
    rows = [
        f"| preset, `base.quantise` | {' | '.join(steps)} | the steps of it that fit 24 GB |",
        f"|---|{'---|' * (len(steps) + 1)}",
    ]
    for name in QUANTISED:
        for kind in ("", "int8", "nf4"):
            stored = [f"base.quantise={kind}"] if kind else []
            gib = predicted_gib(load(RunConfig, name, [*GIVEN, *SMALL, *stored]))
            large = too_large({step: gib[step] for step in steps}, card=CARDS[24])
            fit = [step for step in steps if step not in large]
            said = "all" if not large else ", ".join(fit) if fit else "none"
            values = " | ".join(str(gib[step]) for step in steps)
            rows.append(f"| {name}{f', {kind}' if kind else ''} | {values} | {said} |")
    return rows


if __name__ == "__main__":
    print("\n".join([*table(), "", *quantised_table()]))

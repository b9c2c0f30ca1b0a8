"""Generation and scoring in batches against a plain loop that takes one image at a time.

What the released scripts do: one pipeline call and one reward call an image. Both ways make and
score the same images in one process, by turns; medians of each round's ratio. Seconds are the
process's own on the processor, so that others' work does not count.

    python benchmarks/evaluation.py [ROUNDS [PRESET KEY=VALUE ...]]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from raypref.core.config import load
from raypref.core.rows import Row, Transform
from raypref.engine.batches import in_batches
from raypref.evaluate.generate import BASE, Generate, rows_to_generate
from raypref.evaluate.sets import read_set
from raypref.images.decode import as_png, open_png
from raypref.rewards.base import Score
from raypref.run.config import RunConfig

IMAGES = 16


def through(stage: Transform, rows: Sequence[Row]) -> list[Row]:
    """The rows, in batches; images as PNG."""
    copies = [dict(row) for row in rows]
    in_batches(stage, copies)
    return [{name: as_png(value) for name, value in row.items()} for row in copies]


def timed(work: Callable[[], list[Row]]) -> tuple[float, list[Row]]:
    """Seconds on the processor, and the result."""
    began = time.process_time()
    rows = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - began, rows


def plain_generation(stage: Generate, rows: Sequence[Row]) -> list[Row]:
    """One pipeline call an image; no PNG is written."""
    made = []
    for row in rows:
        [image] = stage.pipeline(
            prompt=row["prompt"],
            height=stage.config.size,
            width=stage.config.size,
            num_inference_steps=stage.config.steps,
            guidance_scale=stage.config.guidance,
            generator=torch.Generator().manual_seed(row["noise"]),
        ).images
        made.append({**row, "pixels": np.asarray(image).astype(int)})
    return made


def plain_scoring(stage: Score, rows: Sequence[Row]) -> list[Row]:
    """One reward call an image."""
    scored = []
    for row in rows:
        [score] = stage.reward.score([open_png(row["image"])], [row["prompt"]])
        scored.append({**row, "pickscore": float(score)})
    return scored


def report(name: str, pairs: list[tuple[float, float]]) -> None:
    """Seconds an image both ways, and the median of the rounds' ratios."""
    ours, plain = (statistics.median(times) / IMAGES for times in zip(*pairs, strict=True))
    ratio = statistics.median(theirs / own for own, theirs in pairs)
    spread = sorted(theirs / own for own, theirs in pairs)
    print(
        f"{name}: {1000 * ours:.1f} ms an image, plain loop {1000 * plain:.1f} ms; "
        f"{ratio:.2f} times as fast ({spread[0]:.2f} to {spread[-1]:.2f} over {len(pairs)} rounds)"
    )


def main() -> None:
    """Take turns and compare."""
    arguments = sys.argv[1:]
    rounds = int(arguments[0]) if arguments else 5
    config = load(RunConfig, arguments[1] if len(arguments) > 1 else "tiny", arguments[2:])
    # Of the size of the comparison; the stage pads a batch of scores to its own size.
    batch = min(IMAGES, config.evaluate.resources.batch)
    pickscore = config.pickscore.model_copy(
        update={"resources": config.pickscore.resources.model_copy(update={"batch": batch})}
    )
    generate = Generate(config.base, config.evaluate, loras={})
    score = Score(pickscore, columns={"image": "pickscore"}, prompt="prompt")
    for stage in (generate, score):
        stage.setup()
    limit = config.evaluate.limit or None
    texts = [p.text for file in config.evaluate.files for p in read_set(file, limit=limit)]
    rows = rows_to_generate(texts, config.evaluate, [BASE]).to_pylist()[:IMAGES]
    assert len(rows) == IMAGES, f"the benchmark needs {IMAGES} images"
    through(generate, rows[:2])  # warm up
    made, scored = [], []
    for _ in range(rounds):
        own, images = timed(lambda: through(generate, rows))
        theirs, loop = timed(lambda: plain_generation(generate, rows))
        made.append((own, theirs))
        for a, b in zip(images, loop, strict=True):
            off = np.abs(np.asarray(open_png(a["image"])).astype(int) - b["pixels"])
            assert off.mean() < 1, "not the same images"
        own, batched = timed(lambda: through(score, images))  # noqa: B023  # called at once
        theirs, one = timed(lambda: plain_scoring(score, images))  # noqa: B023
        scored.append((own, theirs))
        gaps = [abs(a["pickscore"] - b["pickscore"]) for a, b in zip(batched, one, strict=True)]
        assert max(gaps) < 0.05, "not the same scores"
    print(f"{IMAGES} images, batches of {batch}, {torch.get_num_threads()} threads")
    report("generation", made)
    report("scoring (PickScore)", scored)


if __name__ == "__main__":
    main()

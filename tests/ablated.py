"""Results of a table with known means, for the tests of what is made of them."""

from typing import Any

import numpy as np
import pandas as pd

from raypref.ablate import results
from raypref.ablate.table import Table
from raypref.evaluate import statistics


def made(means: dict[str, float], *, noise: float = 0.1, seeds: int = 1, **changes: Any) -> Any:
    """Results of rows with known means: prompts differ widely, rows of a prompt by their means."""
    rng = np.random.default_rng(0)
    of_prompt = rng.normal(0, 5, 200)
    frames = [
        pd.DataFrame(
            {
                "prompt": "p",
                "prompt_id": range(200),
                "seed": f"{seed}/1",
                "training_seed": seed,
                "model": name,
                "metric": "pickscore",
                "score": of_prompt + mean + rng.normal(0, noise, 200),
            }
        )
        for name, mean in means.items()
        for seed in range(1 if name == "base" else seeds)
    ]
    scores = pd.concat(frames, ignore_index=True)
    rows = [{"name": name} for name in means]
    own = Table.model_validate({"title": "T", "rows": rows, **changes})
    summary = statistics.summarise(scores, base="base", resamples=200)
    labels = {name: name for name in means}
    return results.Results(own, scores, summary, {}, labels, {})

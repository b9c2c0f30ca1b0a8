"""CMMD: against the formula written out image by image."""

import itertools

import numpy as np
import pandas as pd
import pytest

from raypref.evaluate.distance import cmmd_summary
from raypref.evaluate.statistics import SUMMARY

PROMPTS, SEEDS, WIDTH = 12, 2, 8


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def reference() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(30, WIDTH)))


@pytest.fixture
def embeddings() -> pd.DataFrame:
    """The base lies apart from the reference, `both` nearly in it."""
    rng = np.random.default_rng(1)
    rows = [
        {"model": model, "prompt_id": prompt, "embedding": unit(rng.normal(size=WIDTH) + shift)}
        for model, shift in (("base", 1.0), ("both", 0.1))
        for prompt in range(PROMPTS)
        for _ in range(SEEDS)
    ]
    return pd.DataFrame(rows)


def kernel(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.exp(-((a - b) ** 2).sum() / (2 * 10.0**2)))


def by_hand(images: pd.DataFrame, reference: np.ndarray) -> float:
    """1000 x MMD^2, pairs of one prompt left out."""
    rows = images[["prompt_id", "embedding"]].to_numpy()
    own = [kernel(a[1], b[1]) for a, b in itertools.combinations(rows, 2) if a[0] != b[0]]
    real = [kernel(a, b) for a, b in itertools.combinations(reference, 2)]
    cross = [kernel(a[1], b) for a in rows for b in reference]
    return 1000 * (np.mean(own) + np.mean(real) - 2 * np.mean(cross))


def test_the_formula(embeddings, reference):
    summary = cmmd_summary(embeddings, reference, base="base", resamples=500)
    assert list(summary.columns) == list(SUMMARY)
    values = {row.model: row for row in summary.itertuples()}
    for model, images in embeddings.groupby("model"):
        assert values[model].mean == pytest.approx(by_hand(images, reference), abs=1e-9)
        assert values[model].low < values[model].mean < values[model].high
        assert (values[model].n_prompts, values[model].n_images) == (PROMPTS, PROMPTS * SEEDS)
    assert np.isnan(values["base"].gain)
    gain = values["both"]
    assert gain.gain == pytest.approx(gain.mean - values["base"].mean)
    assert gain.gain_low < gain.gain < gain.gain_high < 0, "closer, beyond doubt"


def test_images_of_the_reference_itself_are_at_no_distance(reference):
    rng = np.random.default_rng(2)
    same = unit(rng.normal(size=(60, WIDTH)))
    images = pd.DataFrame({"model": "base", "prompt_id": range(60), "embedding": list(same)})
    [row] = cmmd_summary(images, reference, base="base", resamples=500).itertuples()
    assert row.low < 0.2
    assert abs(row.mean) < 1


def test_the_order_of_the_rows_does_not_matter(embeddings, reference):
    def frame(rows: pd.DataFrame) -> pd.DataFrame:
        summary = cmmd_summary(rows, reference, base="base", resamples=100)
        return summary.set_index("model").sort_index().drop(columns="metric")

    shuffled = embeddings.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(frame(embeddings), frame(shuffled), atol=1e-9)

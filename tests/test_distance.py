"""CMMD: against the formula written out image by image."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raypref.core.ledger import Ledger
from raypref.evaluate import distance
from raypref.evaluate.distance import cmmd_summary, fid_summary, frechet
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


@pytest.mark.parametrize(
    "scores, wanted",
    [(None, [0, 1, 2, 3]), ([0.0, 1.0, 1.0, 0.0], [1, 2]), ([1.0, 5.0, 3.0, 2.5], [1, 2])],
    ids=["pairs", "good and bad", "ratings"],
)
def test_the_reference_leaves_bad_single_images_out(
    tmp_path: Path, scores: list[float] | None, wanted: list[int]
) -> None:
    vectors = np.eye(4)
    ids = pa.array(["b", "a", "d", "c"])

    def ledger(name: str, **columns: list[object]) -> Ledger:
        own = Ledger(str(tmp_path / name), {})
        own.begin()
        own.write_part(pa.table({"id": ids, **columns}))
        own.commit(expected=4, counts={})
        return own

    embedded = ledger("embedded", embedding=vectors.tolist())
    found = distance.reference_of(
        embedded, ledger("pairs", **({"score": scores} if scores else {}))
    )
    assert {int(row.argmax()) for row in found} == {*wanted} and len(found) == len(wanted)


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


def test_the_published_estimator_takes_all_pairs(embeddings, reference):
    """An image with itself, and with others of its prompt, too: a plain double loop."""

    def mean(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        return sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))

    def plain(images: list[np.ndarray]) -> float:
        own, real = mean(images, images), mean([*reference], [*reference])
        return 1000 * (own + real - 2 * mean(images, [*reference]))

    given = {"base": "base", "resamples": 300}
    summary = cmmd_summary(embeddings, reference, metric="cmmd_biased", **given)
    assert set(summary["metric"]) == {"cmmd_biased"}
    other = cmmd_summary(embeddings, reference, **given).set_index("model")
    for row in summary.itertuples():
        images = embeddings[embeddings["model"] == row.model]["embedding"].to_list()
        assert row.mean == pytest.approx(plain(images), abs=1e-9)
        assert 0 < row.low < row.high and row.mean > other["mean"][row.model]
    # A bootstrap sample is such a set too: of one prompt drawn alone, the loop over its images.
    one = embeddings[(embeddings["model"] == "base") & (embeddings["prompt_id"] == 3)]
    (alone,) = cmmd_summary(one, reference, metric="cmmd_biased", **given).itertuples()
    assert alone.mean == alone.low == alone.high == pytest.approx(plain(one["embedding"].to_list()))


def test_the_published_estimator_is_0_for_the_reference_itself(reference):
    images = pd.DataFrame({"model": "base", "prompt_id": range(30), "embedding": list(reference)})
    (row,) = cmmd_summary(
        images, reference, base="base", resamples=100, metric="cmmd_biased"
    ).itertuples()
    assert row.mean == pytest.approx(0, abs=1e-9)


def test_the_photographs_are_compared_with_each_other_once(embeddings, reference, monkeypatch):
    """That is the largest of the matrices: millions of pairs, the same for every model."""
    compared = []

    def counted(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        compared.append((len(a), len(b)))
        return plain(a, b)

    plain = distance._kernel
    monkeypatch.setattr(distance, "_kernel", counted)
    cmmd_summary(embeddings, reference, base="base", resamples=100)
    assert compared.count((30, 30)) == 1
    assert compared.count((24, 24)) == compared.count((24, 30)) == 2


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


# ------------------------------------------------------------------ FID


def test_frechet_is_the_textbooks_formula() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(25, 6)) + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet(a, b) == pytest.approx(expected)


def test_frechet_of_fewer_images_than_dimensions() -> None:
    """Singular covariances: against the root of the symmetric product, eigenvalue by eigenvalue."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(5, 12)), rng.normal(size=(7, 12))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)
    traces = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(eigenvalues).sum()
    assert frechet(a, b) == pytest.approx(((a.mean(0) - b.mean(0)) ** 2).sum() + traces, rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert np.isnan(frechet(a[:1], b))


def test_fid_of_every_model(embeddings, reference):
    summary = fid_summary(embeddings, reference, base="base")
    assert list(summary.columns) == list(SUMMARY)
    rows = summary.set_index("model")
    images = np.stack(embeddings.loc[embeddings["model"] == "both", "embedding"].to_list())
    assert rows.loc["both", "mean"] == pytest.approx(1000 * frechet(images, reference))
    assert rows.loc["both", "gain"] == rows.loc["both", "mean"] - rows.loc["base", "mean"] < 0
    assert rows[["low", "high", "gain_low", "gain_high"]].isna().all(axis=None)


def test_fid_is_biased_and_cmmd_is_not() -> None:
    """Two sets of one distribution: FID falls with their size, CMMD is zero on average."""
    rng = np.random.default_rng(5)

    def mean(size: int) -> tuple[float, float]:
        found = []
        for _ in range(40):
            images, real = unit(rng.normal(size=(2, size, WIDTH)))
            frame = pd.DataFrame(
                {"model": "base", "prompt_id": range(size), "embedding": list(images)}
            )
            cmmd = cmmd_summary(frame, real, base="base", resamples=2)["mean"][0]
            found.append((fid_summary(frame, real, base="base")["mean"][0], cmmd))
        return tuple(np.mean(found, axis=0))

    (fid_few, cmmd_few), (fid_many, _) = mean(20), mean(200)
    assert fid_few > 3 * fid_many > 0
    assert abs(cmmd_few) < 0.3

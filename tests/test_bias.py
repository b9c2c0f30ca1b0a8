"""Bias without labels: rank correlation within a hole against scipy's, tilt by hand."""

import math

import numpy as np
import pytest

from raypref.evaluate.bias import bias_markdown, cell_text, rank_correlations, tilt, within_holes


def test_ranks_correlate_as_scipy_says() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 16))
    second = 0.5 * first + rng.normal(size=(40, 16))
    first[:10] = np.round(first[:10])  # ties in one
    second[5:20] = np.round(second[5:20])  # in both
    first[30:, :13] = math.nan  # three candidates are left
    second[3, 4] = math.nan
    found = rank_correlations(first, second)
    for hole in range(40):
        known = np.isfinite(first[hole]) & np.isfinite(second[hole])
        expected = stats.spearmanr(first[hole][known], second[hole][known]).statistic
        assert found[hole] == pytest.approx(expected, abs=1e-12), hole


def test_holes_with_nothing_to_rank_have_no_correlation() -> None:
    nan = math.nan
    scores = np.array([[1, 2, nan, nan], [5, 5, 5, 5], [1, 2, 3, 4], [nan] * 4, [1, 2, 3, nan]])
    looks = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [7, 7, 7, 7], [1, 2, 3, 4], [3, 2, 1, 9]])
    found = rank_correlations(scores, looks.astype(float))
    assert np.isnan(found[:4]).all() and found[4] == pytest.approx(-1)
    [row] = within_holes({"taste": scores}, {("hole", "brightness"): looks}).to_dict("records")
    assert (row["spearman"], row["n_holes"], row["n_left_out"]) == (pytest.approx(-1), 1, 4)
    assert math.isnan(row["low"]), "one hole resampled is always itself"


def test_a_planted_taste_is_found_and_only_that() -> None:
    rng = np.random.default_rng(1)
    bright, busy = rng.normal(size=(2, 64, 16))
    quality = rng.normal(size=(64, 16))
    looks = {("hole", "brightness"): bright, ("hole", "texture"): busy}
    scores = {"likes_light": quality + 2 * bright, "fair": quality, "likes_dark": quality - bright}
    table = within_holes(scores, looks, resamples=500).set_index(["reward", "property"])
    assert table.loc["likes_light", "brightness"]["low"] > 0.7
    assert table.loc["likes_dark", "brightness"]["high"] < -0.4
    for fair in (("fair", "brightness"), ("fair", "texture"), ("likes_light", "texture")):
        assert abs(table.loc[fair]["spearman"]) < 0.08
        assert table.loc[fair]["high"] - table.loc[fair]["low"] < 0.2


def test_tilt_is_in_units_of_the_spread_within_holes() -> None:
    # Two holes of another level: the spread within is 1 and 2, pooled sqrt((2 + 8) / 4).
    values = np.array([[10.0, 11.0, 12.0], [100.0, 102.0, 104.0]])
    key = ("picture", "brightness")
    [row] = tilt(
        {key: values}, {key: np.array([12.0, 104.0])}, {key: np.array([11.0, 101.0])}
    ).to_dict("records")
    assert row["spread"] == pytest.approx(math.sqrt(2.5))
    assert row["tilt"] == pytest.approx((1 + 3) / 2 / math.sqrt(2.5))
    assert row["n_pairs"] == 2 and row["low"] <= row["tilt"] <= row["high"]


def test_a_hole_without_a_pair_and_constant_looks_have_no_tilt() -> None:
    key = ("picture", "brightness")
    one = tilt(
        {key: np.array([[1.0, 2.0], [3.0, 5.0]])},
        {key: np.array([2.0, math.nan])},
        {key: np.array([1.0, math.nan])},
    )
    assert one["n_pairs"].tolist() == [1]
    same = np.full((2, 3), 4.0)
    flat = tilt({key: same}, {key: same[:, 0]}, {key: same[:, 1]})
    assert flat["tilt"].isna().all() and flat["n_pairs"].tolist() == [0]


def test_tables_read_as_markdown() -> None:
    rng = np.random.default_rng(2)
    looks = {("hole", "brightness"): rng.normal(size=(8, 4))}
    found = within_holes(
        {"pickscore": rng.normal(size=(8, 4)), "rule": looks["hole", "brightness"]}, looks
    )
    sides = {("hole", "brightness"): np.arange(8.0)}
    text = bias_markdown(found, tilt(looks, sides, sides), rule="ensemble")
    lines = text.splitlines()
    assert lines[0] == "| in the hole | brightness |"
    assert lines[2].startswith("| PickScore | ") and "[" in lines[2]
    assert lines[3] == "| rule: ensemble | +1.00 [1.00, 1.00] |"
    assert cell_text(math.nan, math.nan, math.nan) == "–"

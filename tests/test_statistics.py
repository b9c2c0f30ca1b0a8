"""Intervals hold what they promise; win rates and breakdowns against counting by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from raypref.evaluate import statistics


def table(scores: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """(model, metric) -> scores [prompts, seeds] as a table of single scores."""
    parts = []
    for (model, metric), values in scores.items():
        prompt, seed = np.indices(values.shape).reshape(2, -1)
        facts = {"prompt_id": prompt, "seed": seed, "score": values.ravel()}
        parts.append(pd.DataFrame(facts).assign(prompt=prompt, model=model, metric=metric))
    return pd.concat(parts, ignore_index=True)[list(statistics.SCORES)]


# ------------------------------------------------------------------ intervals


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """1000 evaluations of 100 prompts x 2 seeds, whose true mean and gain are known."""
    rng = np.random.default_rng(0)
    prompts, gain, parts = 100, 0.3, []
    for seed in range(4):  # 250 evaluations at once, each a metric of its own
        scores = {}
        for number in range(250):
            difficulty = rng.normal(21, 1, (prompts, 1))
            scores["base", f"{number}"] = difficulty + rng.normal(0, 0.5, (prompts, 2))
            scores["both", f"{number}"] = difficulty + gain + rng.normal(0, 0.5, (prompts, 2))
        parts.append(statistics.summarise(table(scores), resamples=500, seed=seed))
    runs = pd.concat(parts).groupby("model")
    own, base = (runs.get_group(model).reset_index(drop=True) for model in ("both", "base"))
    covered = own["low"].lt(21 + gain) & own["high"].gt(21 + gain)
    assert covered.mean() == pytest.approx(0.95, abs=0.02)
    assert (own["gain_low"].lt(gain) & own["gain_high"].gt(gain)).mean() == pytest.approx(
        0.95, abs=0.02
    )
    # Unpaired, the variances of both means would add up.
    unpaired = np.hypot(own["high"] - own["low"], base["high"] - base["low"])
    assert (own["gain_high"] - own["gain_low"] < unpaired).all()


def test_the_interval_of_independent_values_is_that_of_the_mean() -> None:
    values = np.random.default_rng(2).random(400) < 0.7
    mean, low, high = statistics.interval(values.astype(float))
    half = 1.96 * math.sqrt(mean * (1 - mean) / 400)
    assert (mean, low, high) == pytest.approx((values.mean(), mean - half, mean + half), abs=0.01)


# ------------------------------------------------------------------ wins


def test_win_rates_by_counting() -> None:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 4, (30, 3)).astype(float)
    own = rng.integers(0, 4, (30, 3)).astype(float)
    own[0, 0] = np.nan  # no pair
    wins = statistics.win_rates(table({("base", "deqa"): base, ("both", "deqa"): own}))
    [row] = wins.to_dict("records")
    counted = [np.sign(o - b) for o, b in zip(own.flat, base.flat, strict=True) if o == o]
    assert row["n_pairs"] == len(counted) == 89
    assert row["win"] == pytest.approx(counted.count(1) / 89)
    assert row["tie"] == pytest.approx(counted.count(0) / 89)
    assert row["rate"] == pytest.approx((counted.count(1) + 0.5 * counted.count(0)) / 89)
    assert row["low"] < row["rate"] < row["high"]
    assert list(wins.columns) == list(statistics.WINS)


def test_less_wins_where_less_is_better_and_any_model_can_be_the_baseline() -> None:
    scores = table(
        {("base", "fid"): np.ones((4, 1)), ("both", "fid"): np.zeros((4, 1))}
        | {("dpo", "fid"): np.full((4, 1), 0.5)}
    )
    assert statistics.win_rates(scores)["rate"].tolist() == [1, 1]
    against = statistics.win_rates(scores, baseline="both").set_index("model")
    assert against["rate"].to_dict() == {"base": 0, "dpo": 0}
    assert statistics.win_rates(scores, baseline="absent").empty


# ------------------------------------------------------------------ categories and unscored


def test_a_category_is_the_table_of_its_prompts() -> None:
    rng = np.random.default_rng(4)
    scores = table({(m, "deqa"): rng.normal(3, 1, (12, 2)) for m in ("base", "both")})
    groups = {i: {"category": "ab"[i % 2]} | ({"tag": "x"} if i < 4 else {}) for i in range(12)}
    found = statistics.by_category(scores, groups, resamples=200)
    assert found[["grouping", "group"]].drop_duplicates().to_numpy().tolist() == [
        ["category", "a"],
        ["category", "b"],
        ["tag", "x"],
    ]
    alone = statistics.summarise(scores[scores["prompt_id"] % 2 == 1], resamples=200)
    of_b = found[found["group"] == "b"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_b[list(statistics.SUMMARY)], alone)
    assert statistics.by_category(scores, {i: {} for i in range(12)}).empty


def test_an_image_without_a_score_is_counted_and_never_zero() -> None:
    values = np.full((5, 2), 4.0)
    values[0] = np.nan
    summary = statistics.summarise(table({("base", "deqa"): values}))
    assert summary[["mean", "n_images", "n_unscored", "n_prompts"]].to_numpy().tolist() == [
        [4, 8, 2, 4]
    ]


# ------------------------------------------------------------------ human preference


def test_human_preference_is_the_papers_formula() -> None:
    """Figure 2b on the published SD-3.5-M means of Table 1a."""
    unified, hpsv3 = [3.30, 3.47, 3.46], [10.03, 10.79, 12.77]
    models = ("base", "dpo", "both")
    scores = table(
        {(m, "unifiedreward"): np.full((3, 1), u) for m, u in zip(models, unified, strict=True)}
        | {(m, "hpsv3"): np.full((3, 1), h) for m, h in zip(models, hpsv3, strict=True)}
    )
    rows = statistics.human_preference(statistics.summarise(scores)).set_index("model")
    assert rows.loc["base", "mean"] == 0
    assert rows.loc["dpo", "mean"] == pytest.approx(0.5 + 0.5 * 0.76 / 2.74)
    assert rows.loc["both", "mean"] == pytest.approx(0.5 * 0.16 / 0.17 + 0.5)
    assert rows.loc["both", "gain"] == rows.loc["both", "mean"] and math.isnan(rows["low"].iloc[0])
    one = statistics.summarise(scores[scores["metric"] == "hpsv3"])
    assert statistics.human_preference(one).empty

"""Means, intervals and gains against independent computations; the printed forms word by word."""

import io
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raypref.config import InputError
from raypref.evaluate import statistics, tables


def long_table(scores: dict[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """(model, metric) -> scores [prompts, seeds] as a table of single scores."""
    rows = [
        (f"prompt {prompt}", prompt, seed, model, metric, values[prompt, seed])
        for (model, metric), values in scores.items()
        for prompt in range(values.shape[0])
        for seed in range(values.shape[1])
    ]
    return pd.DataFrame(rows, columns=list(statistics.SCORES))


def row(summary: pd.DataFrame, model: str, metric: str) -> pd.Series:
    return summary.set_index(["model", "metric"]).loc[(model, metric)]


@pytest.fixture(scope="module")
def large() -> tuple[dict[tuple[str, str], np.ndarray], pd.DataFrame]:
    """1000 prompts of very different difficulty, 3 images each; the gain is small and steady."""
    rng = np.random.default_rng(5)
    difficulty = rng.normal(21, 2, (1000, 1))
    scores = {
        ("base", "pickscore"): difficulty + rng.normal(0, 0.2, (1000, 3)),
        ("both", "pickscore"): difficulty + 0.1 + rng.normal(0, 0.2, (1000, 3)),
    }
    return scores, statistics.summarise(long_table(scores))


def test_mean_and_counts(large: tuple) -> None:
    scores, summary = large
    both = row(summary, "both", "pickscore")
    assert both["mean"] == pytest.approx(scores["both", "pickscore"].mean())
    assert (both["n_prompts"], both["n_images"]) == (1000, 3000)
    assert list(summary.columns) == list(statistics.SUMMARY)


def test_the_interval_is_the_normal_one_for_many_prompts(large: tuple) -> None:
    scores, summary = large
    prompts = scores["both", "pickscore"].mean(axis=1)
    half = 1.96 * prompts.std(ddof=1) / math.sqrt(len(prompts))
    both = row(summary, "both", "pickscore")
    assert both["low"] == pytest.approx(prompts.mean() - half, abs=0.06 * half)
    assert both["high"] == pytest.approx(prompts.mean() + half, abs=0.06 * half)


def test_the_gain_is_paired_over_prompts(large: tuple) -> None:
    scores, summary = large
    gaps = (scores["both", "pickscore"] - scores["base", "pickscore"]).mean(axis=1)
    half = 1.96 * gaps.std(ddof=1) / math.sqrt(len(gaps))
    both = row(summary, "both", "pickscore")
    assert both["gain"] == pytest.approx(gaps.mean())
    assert both["gain_low"] == pytest.approx(gaps.mean() - half, abs=0.06 * half)
    assert both["gain_high"] == pytest.approx(gaps.mean() + half, abs=0.06 * half)
    # Unpaired, the same gain would drown in the spread between prompts.
    assert both["gain_high"] - both["gain_low"] < 0.15 * (both["high"] - both["low"])
    assert row(summary, "base", "pickscore")[["gain", "gain_low", "gain_high"]].isna().all()


def test_the_interval_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    values = rng.gamma(1.0, 2.0, (80, 2))  # skewed: the normal interval would be wrong
    summary = statistics.summarise(long_table({("base", "hpsv3"): values}), resamples=20_000)
    other = stats.bootstrap(
        (values.mean(axis=1),), np.mean, n_resamples=20_000, method="percentile", rng=2
    ).confidence_interval
    base = row(summary, "base", "hpsv3")
    assert (base["low"], base["high"]) == pytest.approx((other.low, other.high), rel=0.01)


def test_images_of_a_prompt_move_together() -> None:
    prompts = np.random.default_rng(3).normal(0, 1, (50, 1))
    one = statistics.summarise(long_table({("base", "deqa"): prompts}))
    five = statistics.summarise(long_table({("base", "deqa"): np.repeat(prompts, 5, axis=1)}))
    # Five equal images say no more than one, so the interval must not shrink.
    assert five[["low", "high"]].to_numpy() == pytest.approx(one[["low", "high"]].to_numpy())


def test_unequal_numbers_of_images_by_brute_force() -> None:
    rng = np.random.default_rng(4)
    table = long_table({("base", "deqa"): rng.normal(3, 1, (30, 4))})
    table.loc[rng.choice(len(table), 40, replace=False), "score"] = np.nan
    base = row(statistics.summarise(table, resamples=4000), "base", "deqa")
    kept = table.dropna()
    groups = [part.to_numpy() for _, part in kept.groupby("prompt_id")["score"]]
    picks = rng.integers(len(groups), size=(4000, len(groups)))
    means = [np.concatenate([groups[i] for i in pick]).mean() for pick in picks]
    assert (base["mean"], base["n_images"]) == (pytest.approx(kept["score"].mean()), 80)
    width = base["high"] - base["low"]
    assert base["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.06 * width)
    assert base["high"] == pytest.approx(np.quantile(means, 0.975), abs=0.06 * width)


def test_the_same_numbers_in_any_order_and_from_arrow(large: tuple) -> None:
    scores, summary = large
    shuffled = long_table(scores).sample(frac=1, random_state=0)
    assert statistics.summarise(shuffled).equals(summary)
    assert statistics.summarise(pa.Table.from_pandas(shuffled)).equals(summary)
    assert not statistics.summarise(shuffled, seed=1).equals(summary)


def test_a_gain_is_over_the_shared_prompts() -> None:
    level = np.arange(10.0)[:, None]
    table = long_table({("base", "deqa"): level, ("both", "deqa"): level + 0.5})
    easy = table[(table["model"] == "base") | (table["prompt_id"] >= 5)]
    both = row(statistics.summarise(easy), "both", "deqa")
    assert both["mean"] == 7.5 and both["n_prompts"] == 5
    assert both[["gain", "gain_low", "gain_high"]].tolist() == pytest.approx([0.5] * 3)


def test_no_base_no_gain_and_one_prompt_no_interval() -> None:
    summary = statistics.summarise(long_table({("both", "deqa"): np.array([[3.0, 4.0]])}))
    assert summary["mean"].tolist() == [3.5]
    assert summary[["low", "high", "gain"]].isna().all(axis=None)
    assert "| stage 1 + stage 2 | 3.50 |" in tables.markdown(summary, published=None)


def test_the_base_can_be_another_model() -> None:
    values = np.ones((4, 1))
    table = long_table({("base", "deqa"): values, ("stage1", "deqa"): 2 * values})
    summary = statistics.summarise(table, base="stage1")
    assert summary["model"].tolist() == ["stage1", "base"]
    assert row(summary, "base", "deqa")["gain"] == -1


def test_rows_and_columns_have_one_order() -> None:
    values = np.ones((2, 1))
    models = ["zeta", "both", "alpha", "base", "stage1"]
    metrics = ["zz", "deqa", "pickscore"]
    summary = statistics.summarise(long_table({(m, k): values for m in models for k in metrics}))
    assert list(dict.fromkeys(summary["model"])) == ["base", "stage1", "both", "alpha", "zeta"]
    assert summary["metric"].head(3).tolist() == ["pickscore", "deqa", "zz"]


@pytest.mark.parametrize("column", statistics.SCORES)
def test_a_missing_column_is_named(column: str) -> None:
    table = long_table({("base", "deqa"): np.ones((2, 1))}).drop(columns=column)
    with pytest.raises(InputError, match=f"lacks the columns {column}$"):
        statistics.summarise(table)


def test_twice_and_nothing_are_errors() -> None:
    table = long_table({("base", "deqa"): np.ones((2, 1))})
    with pytest.raises(InputError, match="twice: model base, metric deqa, prompt_id 1, seed 0"):
        statistics.summarise(pd.concat([table, table.tail(1)]))
    with pytest.raises(InputError, match="holds no score"):
        statistics.summarise(table.assign(score=np.nan))


SUMMARY = pd.DataFrame(
    [
        ("base", "pickscore", 20.65, 20.6, 20.7, *[math.nan] * 3, 500, 2500, 0),
        ("base", "texture_detail", 1832.3, 1800.2, 1860.7, *[math.nan] * 3, 500, 2500, 0),
        ("both", "pickscore", 21.04, 20.98, 21.1, 0.39, 0.31, 0.47, 500, 2500, 0),
        ("a|b", "pickscore", 20.649, 20.6, 20.7, -0.001, -0.1, 0.1, 400, 2000, 4),
    ],
    columns=list(statistics.SUMMARY),
)

GOLDEN = """\
| model | PickScore ↑ | Texture detail ↑ |
| --- | --- | --- |
| base | <u>20.65</u> [20.60, 20.70] paper 20.65 | 1832 [1800, 1861] |
| stage 1 + stage 2 | **21.04** [20.98, 21.10] (+0.39) paper 21.04 | not run |
| a\\|b | 20.65 [20.60, 20.70] (+0.00) | not run |

Mean over 2,000 to 2,500 images of 400 to 500 prompts [95% interval, bootstrap over prompts] \
(gain over the base). PickScore gave no score for 4 images, which are left out of its means. \
'paper' is the published value (arXiv 2605.19839): comparable for the same base model, prompts and \
number of images only.
"""


def test_golden_markdown() -> None:
    assert tables.markdown(SUMMARY, published=tables.published("table3")) == GOLDEN
    assert "paper" not in tables.markdown(SUMMARY, published=None)


def test_csv_reads_back() -> None:
    text = tables.csv(SUMMARY, published=tables.published("table3"))
    back = pd.read_csv(io.StringIO(text))
    pd.testing.assert_frame_equal(back[list(statistics.SUMMARY)], SUMMARY)
    assert back["published"].tolist()[::2] == [20.65, 21.04]
    assert back["published"].isna().tolist() == [False, True, False, True]


def test_published_values() -> None:
    table3 = tables.published("table3")
    assert len(table3) == 16 and table3["stage2_alone", "deqa"] == 3.93
    assert table3["both", "hpsv3"] == 7.33 and table3["stage1", "aesthetic"] == 5.57
    assert tables.published("table1a", "sd35m")["both", "imagereward"] == 1.08
    assert tables.published("table3", "sd35m") == {}
    with pytest.raises(
        InputError, match="no published 'table9'; there are: table3, table1a, table1b, figure2a"
    ):
        tables.published("table9")

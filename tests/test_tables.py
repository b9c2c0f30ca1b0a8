"""Means, intervals and gains against independent computations; the printed forms word by word."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from raypref.core.config import InputError
from raypref.evaluate import labels, statistics, tables


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
    assert "| stage 1 + stage 2 | 3.50 |" in tables.markdown(
        summary, labels={"both": "stage 1 + stage 2"}
    )


def test_the_base_can_be_another_model() -> None:
    values = np.ones((4, 1))
    table = long_table({("base", "deqa"): values, ("stage1", "deqa"): 2 * values})
    summary = statistics.summarise(table, base="stage1")
    assert summary["model"].tolist() == ["stage1", "base"]
    assert row(summary, "base", "deqa")["gain"] == -1


def test_models_keep_their_order_after_the_base_and_metrics_have_one() -> None:
    values = np.ones((2, 1))
    models = ["zeta", "both", "alpha", "base", "stage1"]
    metrics = ["zz", "deqa", "pickscore"]
    summary = statistics.summarise(long_table({(m, k): values for m in models for k in metrics}))
    assert list(dict.fromkeys(summary["model"])) == ["base", "zeta", "both", "alpha", "stage1"]
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


LABELS = {"stage2": "stage 1 + stage 2"}
SUMMARY = pd.DataFrame(
    [
        ("base", "pickscore", 20.65, 20.6, 20.7, *[math.nan] * 3, 500, 2500, 0),
        ("base", "texture_detail", 1832.3, 1800.2, 1860.7, *[math.nan] * 3, 500, 2500, 0),
        ("stage2", "pickscore", 21.04, 20.98, 21.1, 0.39, 0.31, 0.47, 500, 2500, 0),
        ("a|b", "pickscore", 20.649, 20.6, 20.7, -0.001, -0.1, 0.1, 400, 2000, 4),
    ],
    columns=list(statistics.SUMMARY),
)

GOLDEN = """\
| model | PickScore ↑ | Texture detail ↑ |
| --- | --- | --- |
| base | _20.65_ [20.60, 20.70] paper 20.65 | 1832 [1800, 1861] |
| stage 1 + stage 2 | **21.04** [20.98, 21.10] (+0.39) paper 21.04 | not run |
| a\\|b | 20.65 [20.60, 20.70] (+0.00) | not run |

Mean over 2,000 to 2,500 images of 400 to 500 prompts [95% interval, bootstrap over prompts] \
(gain over the base). PickScore gave no score for 4 images, which are left out of its means. \
'paper' is the published value (arXiv 2605.19839; of inpainters 2509.23082): comparable for the \
same base model, prompts, numbers of images and pairs, and weights of the metric only. Best bold, \
second best italic, by unrounded means.
"""


def test_golden_markdown() -> None:
    assert tables.markdown(SUMMARY, published=tables.published("table3"), labels=LABELS) == GOLDEN
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
    assert table3["stage2", "hpsv3"] == 7.33 and table3["stage1", "aesthetic"] == 5.57
    assert tables.published("table1a", "sd35m")["stage2", "imagereward"] == 1.08
    assert tables.published("table3", "sd35m") == {}
    with pytest.raises(
        InputError, match="no published 'table9'; there are: table3, table1a, table1b, figure2a"
    ):
        tables.published("table9")


# ------------------------------------------------------------------ marks, LaTeX, the paper's look


PAPER = {  # Table 1a, SD-3.5-M: Diffusion-DPO's Aes is above the base's before rounding
    "base": {"pickscore": 22.42, "unifiedreward": 3.30, "aesthetic": 5.438},
    "dpo": {"pickscore": 22.70, "unifiedreward": 3.47, "aesthetic": 5.442},
    "both": {"pickscore": 22.80, "unifiedreward": 3.46, "aesthetic": 5.55},
}


def of_means(means: dict[str, dict[str, float]]) -> pd.DataFrame:
    nothing = [math.nan] * 2
    rows = [
        (m, k, v, *nothing, v - means["base"][k] if m != "base" else math.nan, *nothing, 9, 9, 0)
        for m, own in means.items()
        for k, v in own.items()
    ]
    return pd.DataFrame(rows, columns=list(statistics.SUMMARY))


def test_marks_and_names_are_the_papers() -> None:
    lines = tables.markdown(of_means(PAPER)).splitlines()
    assert lines[0] == "| model | PickScore ↑ | UniRwd ↑ | Aes ↑ |"
    assert lines[2] == "| base | 22.42 | 3.30 | 5.44 |"
    assert lines[3] == "| dpo | _22.70_ (+0.28) | **3.47** (+0.17) | _5.44_ (+0.00) |"
    assert lines[4].split("|")[2:4] == [" **22.80** (+0.38) ", " _3.46_ (+0.16) "]
    assert "UniRwd: UnifiedReward; Aes: LAION aesthetic classifier." in lines[-1]


def test_the_smallest_is_best_where_less_is_better() -> None:
    means = {"base": {"fid": 3.0}, "dpo": {"fid": 2.0}, "both": {"fid": 1.0}}
    text = tables.markdown(of_means(means))
    assert "FID ↓" in text and "**1.0**" in text and "_2.0_" in text
    assert "depends on the number of images" in text


def test_latex() -> None:
    text = tables.latex(of_means(PAPER), published={("dpo", "pickscore"): 22.7})
    lines = text.splitlines()
    assert lines[1:3] == [r"\begin{tabular}{lccc}", r"\toprule"]
    assert lines[3] == r"Method & PickScore $\uparrow$ & UniRwd $\uparrow$ & Aes $\uparrow$ \\"
    assert r"\underline{22.70} (+0.28) {\scriptsize paper 22.70}" in text
    assert r"\textbf{22.80} (+0.38)" in text and lines[-1] == r"\end{tabular}"
    odd = of_means({"base": {"deqa": 1.0}}).assign(model="a_b & 50%")
    assert r"a\_b \& 50\% & 1.00 \\" in tables.latex(odd)


def test_categories_are_printed_under_their_names() -> None:
    rng = np.random.default_rng(0)
    scores = long_table({(m, "deqa"): rng.normal(3, 1, (6, 1)) for m in ("base", "both")})
    groups = {i: {"tag": "counting" if i < 2 else "colors"} for i in range(6)}
    text = tables.categories_markdown(statistics.by_category(scores, groups, resamples=100))
    assert "## By tag" in text and "### counting (2 prompts)" in text
    assert "### colors (4 prompts)\n\n| model | DeQA ↑ |" in text
    nothing = statistics.by_category(scores, {}, resamples=100)
    assert tables.categories_markdown(nothing) == "The prompts have no categories.\n"


def test_published_values_are_those_of_the_reference_file(shared_data: Path) -> None:
    text = (shared_data.parent / "paper" / "reference_results.yaml").read_text()
    order = [m.strip() for m in re.search(r"metrics: \[(.*)\]", text)[1].split(",")]  # type: ignore[index]
    names = {"base": "base", "diffusion-dpo": "diffusion_dpo", "ours": "stage2"}
    checked = 0
    for table in ("table1a", "table1b"):
        block = text.split(f"{table}:")[1].split("\ntable")[0]
        for model, method, values in re.findall(
            r"model: (\w+),\s+method: ([\w-]+),.*values: \[(.*?)\]", block
        ):
            ours = tables.published(table, model)
            for metric, value in zip(order, values.split(","), strict=True):
                assert ours[names[method], metric] == float(value)
                checked += 1
    assert checked == 2 * 6 * 6
    assert [labels.plain_label(m) for m in order] == [
        *("PickScore", "ImgRwd", "UniRwd", "HPSv3", "DeQA", "Aes")
    ]
    assert labels.metric_names()[:6] == order

"""Results of a table: its rows with their gains, the claims it tests, its figure."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from ablated import made

from raypref.ablate import claims, figures, results
from raypref.ablate.table import Claim
from raypref.evaluate import tables


@pytest.mark.parametrize(
    ("contrast", "outcome"),
    [
        ({"b": 1, "a": -1}, "confirmed"),
        ({"a": 1, "b": -1}, "contradicted"),
        ({"c": 1, "b": -1}, "not decided"),
        ({"b": 2, "a": -1, "c": -1}, "confirmed"),  # diminishing returns
    ],
)
def test_a_claim_is_tested_in_pairs_of_prompts(contrast, outcome):
    found = made({"base": 0.0, "a": 1.0, "b": 2.0, "c": 2.0})
    (verdict,) = claims.verdicts(found, Claim(says="s", contrast=contrast), resamples=500)
    assert verdict.outcome == outcome
    means = found.scores.groupby("model")["score"].mean()
    assert verdict.value == pytest.approx(sum(w * means[n] for n, w in contrast.items()))
    # The prompts' own spread of 5 would make the interval wider than 1 if it were not paired.
    assert verdict.high - verdict.low < 0.1
    told = {
        "confirmed": "confirmed by 1 of 1 metrics",
        "contradicted": "confirmed by 0, contradicted by 1 of 1 metrics",
        "not decided": "confirmed by 0 of 1 metrics",
    }
    own = [{"says": "s", "contrast": contrast}]
    text = moved(made({"base": 0.0, "a": 1.0, "b": 2.0, "c": 2.0}, claims=own))
    assert f"- s: {told[outcome]}\n  - PickScore: {outcome}, " in text


def moved(found: results.Results) -> str:
    return claims.what_moved(found, claims.tested(found, resamples=100))


def test_a_difference_that_rounds_to_zero_is_told_with_more_digits():
    """Texture detail is shown without decimals: a gain of a tenth that is sure is not +0 [0, 0]."""
    verdict = claims.Verdict("texture_detail", 0.123, 0.061, 0.184, (1, 1), math.nan)
    assert claims.verdict_text(verdict, paper="paper") == (
        "Texture detail: confirmed, +0.1 [0.1, 0.2]"
    )
    undecided = claims.Verdict("texture_detail", 0.1, -0.1, 0.3, (1, 1), 2.0)
    assert claims.verdict_text(undecided, paper="paper") == (
        "Texture detail: not decided, +0.1 [-0.1, 0.3] (paper +2)"
    )


def test_less_is_better_where_it_is():
    found = made({"base": 0.0, "a": -1.0})
    found.scores["metric"] = "cmmd"
    (verdict,) = claims.verdicts(
        found, Claim(says="s", contrast={"a": 1, "base": -1}), resamples=99
    )
    assert verdict.outcome == "confirmed"


@pytest.mark.parametrize(
    ("judge", "outcome"), [(-1.0, "confirmed"), (1.0, "contradicted"), (0.0, "not decided")]
)
def test_hacking_is_the_own_reward_up_and_a_judge_down(judge, outcome):
    """Both contrasts must hold: the reward that built the pairs rises, the other one falls."""
    rises = {"contrast": {"bright": 1, "base": -1}, "metrics": ["pickscore"]}
    falls = {"contrast": {"base": 1, "bright": -1}, "metrics": ["prompt_accuracy"]}
    found = made(
        {"base": 0.0, "bright": 1.0}, claims=[{"says": "bright hacks", **rises, "and": [falls]}]
    )
    judged = made({"base": 0.0, "bright": judge}).scores.assign(metric="prompt_accuracy")
    # The same noise in both would leave no doubt about a difference of nothing.
    judged["score"] += np.random.default_rng(5).normal(0, 0.1, len(judged))
    found.scores = pd.concat([found.scores, judged], ignore_index=True)
    held = 2 if outcome == "confirmed" else 1
    text = moved(found)
    assert f"- bright hacks: {outcome} (confirmed by {held}" in text
    assert "  - bright - base, PickScore: confirmed, +1" in text
    assert f"  - base - bright, Prompt accuracy: {outcome}, " in text
    found.scores = found.scores[found.scores["metric"] == "pickscore"]
    assert f"- bright hacks: {claims.NOT_TESTED}" in moved(found), "half of it proves nothing"


def test_looks_are_tested_only_where_a_claim_names_them():
    claim = {"says": "s", "contrast": {"a": 1, "base": -1}}
    found = made({"base": 0.0, "a": 1.0})
    lighter = found.scores.assign(metric="brightness")
    found.scores = pd.concat([found.scores, lighter], ignore_index=True)
    names = [v.metric for v in claims.verdicts(found, Claim(**claim), resamples=99)]
    assert names == ["pickscore"]
    named = Claim(**claim, metrics=("brightness",))
    assert [v.metric for v in claims.verdicts(found, named, resamples=99)] == ["brightness"]


def test_a_claim_about_a_row_that_failed_is_not_tested():
    found = made({"base": 0.0}, rows=[{"name": "base"}, {"name": "a"}])
    claim = Claim(says="s", contrast={"a": 1, "base": -1})
    assert claims.verdicts(found, claim, resamples=99) == []


def test_seeds_are_counted_one_by_one_and_their_spread_is_told():
    found = made({"base": 0.0, "a": 1.0}, seeds=3)
    (verdict,) = claims.verdicts(
        found, Claim(says="s", contrast={"a": 1, "base": -1}), resamples=99
    )
    assert verdict.seeds == (3, 3)
    means = found.scores[found.scores["model"] == "a"].groupby("training_seed")["score"].mean()
    assert f"{means.mean():.2f} ± {np.std(means, ddof=1):.2f}" in results.spread(found)
    assert results.spread(made({"base": 0.0, "a": 1.0})) == ""


def test_a_failed_row_stands_at_its_place_with_its_reason():
    found = made({"base": 0.0, "b": 1.0})
    found.labels = {"base": "base", "a": "row a", "b": "row b"}
    found.problems = {"a": "train.stage2.beta=-1 is wrong"}
    lines = [line for line in results.table_markdown(found).splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines] == [
        "model",
        "---",
        "base",
        "row a",
        "row b",
    ]
    assert "train.stage2.beta=-1 is wrong" in lines[3]
    assert {line.count("|") for line in lines} == {3}
    assert "row a" in results.table_csv(found)
    assert tables.PAPER not in results.table_markdown(found)
    found.published = {("a", "pickscore"): 21.03, ("a", "deqa"): 3.7}
    assert "| row a | train.stage2.beta=-1 is wrong; paper 21.03 |" in results.table_markdown(found)
    assert results.table_markdown(found).count(tables.PAPER) == 1
    rows = pd.read_csv(io.StringIO(results.table_csv(found)))
    of_a = rows[rows["model"] == "a"].set_index("metric")["published"]
    assert of_a.to_dict() == {"pickscore": 21.03, "deqa": 3.7}


def test_a_label_may_hold_what_marks_a_cell():
    found = made({"base": 0.0, "a": 1.0})
    found.labels["a"] = "x | y"
    assert "| x \\| y | **" in results.table_markdown(found)


def test_what_the_paper_has_stands_in_a_row_without_numbers():
    found = made({"base": 0.0}, columns=("pickscore", "deqa"))
    found.labels, found.problems = {"a": "row a"}, {"a": "not given: add x=..."}
    found.published = {("a", "pickscore"): 21.03, ("a", "deqa"): 3.7}
    found.summary = found.summary.iloc[:0]
    assert results.table_markdown(found).splitlines()[2:5] == [
        "| model | PickScore ↑ | DeQA ↑ |",
        "| --- | --- | --- |",
        "| row a | not given: add x=...; paper 21.03 | paper 3.70 |",
    ]
    assert tables.PAPER in results.table_markdown(found)


def test_a_claim_is_counted_apart_by_the_columns_of_the_paper():
    found = made(
        {"base": 0.0, "a": 1.0},
        columns=("pickscore",),
        claims=[
            {"says": "s", "contrast": {"a": 1, "base": -1}},
            {"says": "of another family", "contrast": {"a": 1, "b": -1}},
        ],
    )
    worse = found.scores.assign(metric="colorfulness", score=-found.scores["score"])
    found.scores = pd.concat([found.scores, worse])
    text = moved(found)
    expected = (
        "paper's metrics: confirmed by 1 of 1; others: confirmed by 0, contradicted by 1 of 1"
    )
    assert f"- s: {expected}\n" in text
    found.scores = worse
    text = moved(found)
    assert "- s: confirmed by 0, contradicted by 1 of 1 metrics, none of them the paper's" in text
    assert "of another family" not in text


@pytest.mark.parametrize("plot", ["", "bars", "curves"])
def test_a_figure_is_drawn_and_the_same_numbers_give_the_same_file(plot):
    found = made({"base": 0.0, "a": 1.0, "b": 2.0}, plot=plot)
    found.published = {("base", "pickscore"): 20.0, ("a", "pickscore"): 20.5}
    places = {"a": 4.0, "b": 8.0}
    svg = figures.draw(found, positions=places)
    assert svg == figures.draw(found, positions=places)
    assert "this run" in svg
    assert "paper" in svg


@pytest.mark.parametrize("plot", ["bars", "curves"])
def test_a_figure_of_which_no_row_was_run_is_empty(plot):
    assert figures.draw(made({"base": 0.0}, plot=plot), positions={"a": 4.0}).startswith("<?xml")


def test_a_dollar_sign_in_a_label_is_no_formula():
    found = made({"base": 0.0, "a": 1.0, "b": 2.0}, plot="bars")
    found.labels["a"] = "costs $5_$"
    assert "costs $5_$" in figures.draw(found, positions={})


def test_seeds_that_failed_are_not_replaced_by_others():
    found = made({"base": 0.0, "a": 1.0, "b": 2.0}, seeds=3)
    own = found.scores
    found.scores = own[(own["model"] != "b") | (own["training_seed"] == 1)]
    found.problems = {"b": "broke (seed 0)"}
    (verdict,) = claims.verdicts(found, Claim(says="s", contrast={"b": 1, "a": -1}), resamples=99)
    assert verdict.seeds == (1, 1)


def test_one_shared_prompt_decides_nothing():
    found = made({"base": 0.0, "a": 1.0, "b": 2.0})
    own = found.scores
    claim = Claim(says="s", contrast={"b": 1, "a": -1})
    found.scores = own[(own["model"] != "b") | (own["prompt_id"] == 7)]
    (verdict,) = claims.verdicts(found, claim, resamples=99)
    assert verdict.outcome == "not decided"
    # Nor do other prompts of the same numbers.
    found.scores = own.assign(prompt=own["prompt"].where(own["model"] != "b", "another"))
    assert claims.verdicts(found, claim, resamples=99) == []


def test_rows_of_other_prompts_are_told():
    scores = made({"base": 0.0, "a": 1.0, "b": 2.0}).scores
    fewer = scores[(scores["model"] != "a") | (scores["prompt_id"] < 9)]
    assert results._of_other_prompts(fewer, base="base") == []
    other = scores.assign(prompt=scores["prompt"].where(scores["model"] != "b", "another"))
    assert results._of_other_prompts(other, base="base") == ["b"]


def test_a_reason_stays_in_its_cell():
    found = made({"base": 0.0})
    found.labels = {"base": "base", "a": "x | y"}
    found.problems = {"a": "first line\nsecond | line"}
    last = results.table_markdown(found).splitlines()[-4:]
    assert any(line.startswith(r"| x \| y | first line second \| line") for line in last), last


def test_the_papers_row_that_equals_the_base_is_drawn():
    found = made({"base": 0.0, "a": 1.0})
    found.published = {("base", "pickscore"): 20.0, ("a", "pickscore"): 20.0}
    assert figures._published_gains(found, "pickscore") == {"a": 0.0}

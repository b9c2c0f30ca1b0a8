"""Results of a table: its rows with their gains, the claims it tests, its figure."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raypref.ablate import claims, figures, results
from raypref.ablate.table import Claim, Table
from raypref.evaluate import statistics, tables


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


@pytest.mark.parametrize(
    ("contrast", "outcome"),
    [
        ({"b": 1, "a": -1}, "holds"),
        ({"a": 1, "b": -1}, "does not hold"),
        ({"c": 1, "b": -1}, "not decided"),
        ({"b": 2, "a": -1, "c": -1}, "holds"),  # diminishing returns
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
    assert f"s: {outcome} by 1 of 1 metrics" in claims.what_moved(
        made(
            {"base": 0.0, "a": 1.0, "b": 2.0, "c": 2.0},
            claims=[{"says": "s", "contrast": contrast}],
        ),
        resamples=500,
    )


def test_less_is_better_where_it_is():
    found = made({"base": 0.0, "a": -1.0})
    found.scores["metric"] = "cmmd"
    (verdict,) = claims.verdicts(
        found, Claim(says="s", contrast={"a": 1, "base": -1}), resamples=99
    )
    assert verdict.outcome == "holds"


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
    text = claims.what_moved(found, resamples=100)
    assert "- s: holds by 1 of 1 metrics of the paper's; does not hold by 1 of 1 others" in text
    found.scores = worse
    text = claims.what_moved(found, resamples=100)
    assert "- s: does not hold by 1 of 1 metrics, none of them the paper's" in text
    assert "of another family" not in text


@pytest.mark.parametrize("plot", ["bars", "curves"])
def test_a_figure_is_drawn_and_the_same_numbers_give_the_same_file(plot):
    found = made({"base": 0.0, "a": 1.0, "b": 2.0}, plot=plot)
    found.published = {("base", "pickscore"): 20.0, ("a", "pickscore"): 20.5}
    places = {"a": 4.0, "b": 8.0}
    svg = figures.draw(found, places=places)
    assert svg == figures.draw(found, places=places)
    assert "this run" in svg
    assert "paper" in svg


@pytest.mark.parametrize("plot", ["bars", "curves"])
def test_a_figure_of_which_no_row_was_run_is_empty(plot):
    assert figures.draw(made({"base": 0.0}, plot=plot), places={"a": 4.0}).startswith("<?xml")


def test_a_dollar_sign_in_a_label_is_no_formula():
    found = made({"base": 0.0, "a": 1.0, "b": 2.0}, plot="bars")
    found.labels["a"] = "costs $5_$"
    assert "costs $5_$" in figures.draw(found, places={})


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

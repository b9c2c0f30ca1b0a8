"""Comparable is tested: equivalence, superiority and neither are told apart at the stated rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ablated import made
from scipy.stats import norm

from raypref.ablate import claims
from raypref.ablate.claims import Verdict
from raypref.ablate.table import Claim, names, read_table
from raypref.core.config import InputError, build
from raypref.evaluate import statistics

PROMPTS, TRIALS, RESAMPLES = 80, 400, 300
SPREAD = 1.0 / math.sqrt(PROMPTS)  # of a mean of differences with spread 1


def outcomes(test: str, *, mean: float, margin: float, wobble: float = 0.0) -> dict[str, float]:
    """Shares of outcomes over trials; `wobble`: spread of the margin's own values per prompt."""
    rng = np.random.default_rng(5)
    weights = statistics.draws(PROMPTS, RESAMPLES, 0).astype(float) / PROMPTS
    weights = np.concatenate([np.full((1, PROMPTS), 1 / PROMPTS), weights])
    counts = {"confirmed": 0, "contradicted": 0, "not decided": 0}
    for _ in range(TRIALS):
        differences = rng.normal(mean, 1.0, PROMPTS)
        margins = rng.normal(margin, wobble, PROMPTS)
        found = claims._against_margin(test, weights @ differences, weights @ margins, PROMPTS)
        counts[found.outcome] += 1
    return {name: count / TRIALS for name, count in counts.items()}


@pytest.mark.parametrize("wobble", [0.0, 0.5])
@pytest.mark.parametrize("test", ["equivalent", "not_worse"])
def test_on_the_margin_one_in_twenty_is_called_inside(test: str, wobble: float) -> None:
    margin = 5 * SPREAD
    for mean in (-margin, margin) if test == "equivalent" else (-margin,):
        found = outcomes(test, mean=mean, margin=margin, wobble=wobble)
        # 5% with a standard error of 1.1 points, and the bootstrap's own optimism of a point.
        assert found["confirmed"] < 0.09
        assert found["contradicted"] < 0.09


@pytest.mark.parametrize("test", ["equivalent", "not_worse"])
def test_known_differences_are_told_apart(test: str) -> None:
    margin = 5 * SPREAD
    assert outcomes(test, mean=0.0, margin=margin)["confirmed"] > 0.95  # equal
    assert outcomes(test, mean=-10 * SPREAD, margin=margin)["contradicted"] > 0.95  # worse
    better = outcomes(test, mean=10 * SPREAD, margin=margin)
    assert better["contradicted" if test == "equivalent" else "confirmed"] > 0.95
    narrow = outcomes(test, mean=0.0, margin=1 * SPREAD)  # too few prompts to tell
    assert narrow["not decided"] > 0.6


def test_the_rate_of_confirmations_is_that_of_the_formula() -> None:
    """Two one-sided z tests of a known spread: the power has a closed form."""
    mean, margin = 1.0 * SPREAD, 3.5 * SPREAD
    z = norm.ppf(0.95)
    power = norm.cdf(3.5 - 1.0 - z) + norm.cdf(3.5 + 1.0 - z) - 1
    found = outcomes("equivalent", mean=mean, margin=margin)
    assert found["confirmed"] == pytest.approx(power, abs=0.08)


OF_DPO = {"of": {"dpo": 1, "base": -1}, "share": 0.25}


@pytest.mark.parametrize(
    ("ours", "test", "outcome"),
    [
        (1.95, "not_worse", "confirmed"),
        (1.95, "equivalent", "confirmed"),
        (1.0, "not_worse", "contradicted"),
        (4.0, "not_worse", "confirmed"),
        (4.0, "equivalent", "contradicted"),
    ],
)
def test_a_margin_may_be_a_share_of_another_rows_gain(ours: float, test: str, outcome: str) -> None:
    found = made({"base": 0.0, "dpo": 2.0, "ours": ours})
    claim = Claim(says="s", test=test, contrast={"ours": 1, "dpo": -1}, **OF_DPO)
    (verdict,) = claims.verdicts(found, claim, resamples=400)
    assert verdict.outcome == outcome
    means = found.scores.groupby("model")["score"].mean()
    assert verdict.value == pytest.approx(means["ours"] - means["dpo"])
    assert verdict.margin == pytest.approx((means["dpo"] - means["base"]) / 4)
    sign = "±" if test == "equivalent" else "-"
    assert f"for a margin of {sign}0.5" in claims.verdict_text(verdict, paper="paper")


def test_a_margin_in_the_metrics_units_leaves_others_out() -> None:
    found = made({"base": 0.0, "a": 0.01})
    about = {"says": "s", "test": "equivalent", "contrast": {"a": 1, "base": -1}}
    (verdict,) = claims.verdicts(found, Claim(**about, margin={"pickscore": 0.5}), resamples=200)
    assert (verdict.metric, verdict.outcome) == ("pickscore", "confirmed")
    assert not claims.verdicts(found, Claim(**about, margin={"hpsv3": 0.5}), resamples=200)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"test": "equivalent"}, "give margin, or of and share"),
        ({"test": "not_worse", "margin": {"a": 1.0}, "of": {"b": 1}}, "give margin, or of"),
        ({"margin": {"a": 1.0}}, "test=above has no margin"),
    ],
)
def test_a_claim_that_says_no_margin_or_two_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(Claim, {"says": "s", "contrast": {"a": 1}, **given})


def test_holms_correction_counts_all_tests() -> None:
    def verdict(p: float) -> Verdict:
        return Verdict("pickscore", 1.0, 0.1, 2.0, (1, 1), math.nan, p=p)

    found = [verdict(p) for p in (0.04, 0.01, 0.013, 0.001)]
    assert claims.holm(found) == 4  # 0.001 * 4, 0.01 * 3, 0.013 * 2, 0.04: each at most 5%
    assert claims.holm([*found, verdict(0.045)]) == 3  # 0.04 * 2 is too much
    told = claims.how_tested([claims.Tested(Claim(says="s", contrast={"a": 1}), [found])])
    assert "4 tests were made" in told and "leaves 4 of the 4 confirmed" in told


def test_the_papers_comparisons_are_tested_as_such() -> None:
    tests = {
        (name, claim.test)
        for name in names()
        for claim in read_table(name).claims
        if "comparable" in claim.says
    }
    of_dpo = {(name, "not_worse") for name in ("table1a", "table1b", "table4", "table6")}
    assert tests >= of_dpo | {("figure5", "not_worse"), ("figure10", "not_worse")}
    assert any("limited improvements" in claim.says for claim in read_table("table3").claims)
    for claim in read_table("figure8_civitai").claims:
        assert "(not a claim of the paper)" in claim.says

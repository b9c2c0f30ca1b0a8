"""Numbers of votes: who wins, how far raters agree, and how they can be trusted.

Votes are counted per prompt, as in the paper's study (arXiv 2605.19839, appendix A.3): a prompt is
won by the model that more raters prefer and tied where as many do; a vote for neither counts for
neither. Intervals are 95% percentile bootstraps over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest

from raypref.core.config import InputError
from raypref.evaluate import statistics
from raypref.study.folder import DAMAGED

ALL = "all"  # the row over all categories
OUTCOMES = (
    *("model", "other", "category", "win", "tie", "loss", "win_low", "win_high"),
    *("rate", "rate_low", "rate_high", "n_prompts", "n_votes"),
)
AGREEMENT = ("model", "other", "alpha", "low", "high", "n_prompts", "n_raters")
STRENGTH = ("model", "strength", "low", "high", "against_mean", "n_votes")
RATERS = ("rater", "n_votes", "checks", "checks_passed", "repeats", "repeats_alike", "left_out")
STEPS = 10_000  # of the fit of strengths, which needs tens


class VoteResults(NamedTuple):
    """What votes say.

    Attributes:
        outcomes: per two models and category, columns `OUTCOMES`; percent of prompts.
        agreement: per two models, columns `AGREEMENT`: Krippendorff's alpha, nominal.
        strengths: per model, columns `STRENGTH`: Bradley-Terry, the strongest first.
        raters: per rater, columns `RATERS`.
        left: share of decided votes that went to the left image, with its interval.
        n_votes: those that count: no attention checks, no repeats, no rater who was left out.
    """

    outcomes: pd.DataFrame
    agreement: pd.DataFrame
    strengths: pd.DataFrame
    raters: pd.DataFrame
    left: tuple[float, float, float]
    n_votes: int


def results_of_votes(
    votes: pd.DataFrame, *, base: str = "base", least_checks: float = 0.75, resamples: int = 2000
) -> VoteResults:
    """All numbers of a table of votes.

    Args:
        votes: a row per vote with `item`, `prompt_id`, `category`, `rater`, `left`, `right` (names
            of models), `choice` (left, right or tie) and the flags `attention` and `repeat`.
        base: the model that others are compared with, where it is among them.
        least_checks: share of attention checks that a rater must pass to be counted.
        resamples: bootstrap samples behind each interval.

    Raises:
        InputError: no vote is left.
    """
    people = rater_records(votes, least_checks=least_checks)
    sound = votes[~votes["rater"].isin(people.loc[people["left_out"], "rater"])]
    counted = votes_that_count(votes, least_checks=least_checks)
    if counted.empty:
        why = "all raters failed their attention checks" if people["left_out"].any() else "none"
        raise InputError(f"no vote counts: {why}")
    seen = sound[~sound["attention"]]
    pairs = compared(counted, base=base)
    return VoteResults(
        outcomes_by_category(counted, pairs, resamples=resamples),
        rater_agreement(counted, pairs, resamples=resamples),
        model_strengths(counted, base=base, resamples=resamples),
        people,
        left_share(seen),
        len(counted),
    )


def votes_that_count(votes: pd.DataFrame, *, least_checks: float = 0.75) -> pd.DataFrame:
    """Votes without attention checks, repeats, and raters who failed their attention checks."""
    people = rater_records(votes, least_checks=least_checks)
    out = votes["rater"].isin(people.loc[people["left_out"], "rater"])
    return votes[~votes["attention"] & ~votes["repeat"] & ~out]


def compared(votes: pd.DataFrame, *, base: str = "base") -> list[tuple[str, str]]:
    """Every two models that votes compare, the base second, others by name."""
    found = {frozenset(pair) for pair in zip(votes["left"], votes["right"], strict=True)}
    ordered = [sorted(pair, key=lambda name: (name == base, name)) for pair in found]
    return sorted((one, other) for one, other in ordered)


def balance(votes: pd.DataFrame, model: str, other: str) -> pd.DataFrame:
    """Votes per prompt for one model, for another, and for neither.

    Returns:
        One row per prompt that compares the two: `prompt_id`, `category`, `first`, `second`,
        `neither`, by prompt.
    """
    own = votes[votes[["left", "right"]].isin((model, other)).all(axis=1)]
    chosen = preferred(own)
    counts = pd.DataFrame(
        {
            "prompt_id": own["prompt_id"],
            "category": own["category"],
            "first": chosen == model,
            "second": chosen == other,
            "neither": own["choice"] == "tie",
        }
    )
    return counts.groupby(["prompt_id", "category"], as_index=False).sum()


def preferred(votes: pd.DataFrame) -> pd.Series:
    """The model that each vote prefers; empty for neither."""
    left, right = votes["choice"] == "left", votes["choice"] == "right"
    return votes["left"].where(left, votes["right"].where(right, ""))


def outcomes_by_category(
    votes: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, resamples: int = 2000
) -> pd.DataFrame:
    """How often a model wins, ties and loses, over all prompts and per category.

    Args:
        votes: those that count.
        pairs: the models to compare, as `compared` lists them.
        resamples: bootstrap samples.

    Returns:
        Rows with the columns `OUTCOMES`. `win`, `tie` and `loss` are percents of prompts, `rate`
        is win + tie / 2.
    """
    rows = []
    for model, other in pairs:
        own = balance(votes, model, other)
        named = [(ALL, own), *own.groupby("category")]
        for category, part in named if own["category"].nunique() > 1 else named[:1]:
            signs = np.sign(part["first"].to_numpy() - part["second"].to_numpy())
            win, tie = 100 * float((signs > 0).mean()), 100 * float((signs == 0).mean())
            drawn = _draws(len(signs), resamples) * (100 / len(signs))
            rows.append(
                (
                    *(model, other, category, win, tie, 100 - win - tie),
                    *statistics.percentiles(drawn @ (signs > 0), len(signs)),
                    win + tie / 2,
                    *statistics.percentiles(drawn @ ((1 + signs) / 2), len(signs)),
                    *(len(part), int(part[["first", "second", "neither"]].to_numpy().sum())),
                )
            )
    return pd.DataFrame(rows, columns=list(OUTCOMES))


def _draws(n_prompts: int, resamples: int) -> np.ndarray:
    """How often each prompt is drawn in each bootstrap sample, [resamples, n_prompts]."""
    return statistics.draws(n_prompts, resamples, 0).astype(np.float64)


def rater_agreement(
    votes: pd.DataFrame, pairs: Sequence[tuple[str, str]], *, resamples: int = 2000
) -> pd.DataFrame:
    """How far raters agree on the same two images: Krippendorff's alpha for nominal data.

    1 is perfect agreement, 0 that of chance; a tie is an answer like the two others. Prompts that
    one rater alone saw say nothing. NaN where no prompt had two raters, or all votes are alike.

    Returns:
        Rows with the columns `AGREEMENT`.
    """
    rows = []
    for model, other in pairs:
        counts = balance(votes, model, other)[["first", "second", "neither"]].to_numpy(float)
        counts = counts[counts.sum(axis=1) >= 2]
        own = votes[votes[["left", "right"]].isin((model, other)).all(axis=1)]
        low = high = math.nan
        value = math.nan
        if len(counts):
            value = float(alpha(counts, np.ones((1, len(counts))))[0])
            drawn = alpha(counts, _draws(len(counts), resamples))
            low, high = statistics.percentiles(drawn, len(counts))
        rows.append((model, other, value, low, high, len(counts), own["rater"].nunique()))
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def alpha(counts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Alpha for nominal data (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
        counts: how often each answer was given per unit, [units, answers]; two or more per unit.
        times: how often each unit is taken, [samples, units].

    Returns:
        Alpha per sample, [samples]; NaN where all answers are the same one.
    """
    per_unit = counts.sum(axis=1)
    observed = times @ ((per_unit**2 - (counts**2).sum(axis=1)) / (per_unit - 1))
    total = times @ per_unit
    expected = total**2 - ((times @ counts) ** 2).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (total - 1) * observed / expected


def model_strengths(
    votes: pd.DataFrame, *, base: str = "base", resamples: int = 2000
) -> pd.DataFrame:
    """How strong each model is, by all votes together: Bradley and Terry (1952).

    A model of strength s is preferred to one of strength r with probability 1 / (1 + exp(r - s)).
    A tie counts half for either.

    Returns:
        Rows with the columns `STRENGTH`, the strongest first. Strengths are natural logarithms
        with the base's at 0 (or their mean, where there is no base). `against_mean`: how often the
        model is preferred to one of mean strength. NaN where votes do not tell: some models never
        won, or never lost, against the others; an interval is NaN where that is so in more than 1
        of 40 resamples.
    """
    models = sorted({*votes["left"], *votes["right"]})
    number = {name: k for k, name in enumerate(models)}
    prompts, of_prompt = np.unique(votes["prompt_id"].to_numpy(), return_inverse=True)
    left, right = (votes[side].map(number).to_numpy() for side in ("left", "right"))
    share = votes["choice"].map({"left": 1.0, "right": 0.0, "tie": 0.5}).to_numpy()
    wins = np.zeros((len(prompts), len(models), len(models)))
    np.add.at(wins, (of_prompt, left, right), share)
    np.add.at(wins, (of_prompt, right, left), 1 - share)

    def centred(of: np.ndarray) -> np.ndarray:
        fitted = bradley_terry(of)
        return fitted - (fitted[number[base]] if base in number else fitted.mean())

    whole = centred(wins.sum(axis=0))
    samples = np.tensordot(_draws(len(prompts), resamples), wins, axes=1)
    drawn = np.stack([centred(sample) for sample in samples])
    low, high = np.full((2, len(models)), math.nan)
    if len(prompts) > 1 and np.isnan(drawn).mean() <= 1 / 40:
        low, high = np.nanpercentile(drawn, (2.5, 97.5), axis=0)
    rows = [
        (
            *(name, whole[k], low[k], high[k]),
            1 / (1 + math.exp(whole.mean() - whole[k])),
            int((left == k).sum() + (right == k).sum()),
        )
        for name, k in number.items()
    ]
    found = pd.DataFrame(rows, columns=list(STRENGTH))
    return found.sort_values("strength", ascending=False, kind="stable", ignore_index=True)


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """The strengths under which the wins are likeliest, by minorisation (Hunter 2004).

    Args:
        wins: how often the row's model was preferred to the column's, [models, models].

    Returns:
        Natural logarithms of mean 0, [models]; NaN where no strengths are likeliest.
    """
    parts, _ = connected_components(wins > 0, directed=True, connection="strong")
    if parts > 1:
        return np.full(len(wins), math.nan)
    games, won = wins + wins.T, wins.sum(axis=1)
    worth = np.ones(len(wins))
    for _ in range(STEPS):
        before = worth
        worth = won / (games / (worth[:, None] + worth[None, :])).sum(axis=1)
        worth /= np.exp(np.log(worth).mean())
        if np.abs(np.log(worth / before)).max() < 1e-10:
            break
    return np.log(worth)


def rater_records(votes: pd.DataFrame, *, least_checks: float = 0.75) -> pd.DataFrame:
    """How each rater did: attention checks passed, repeated pairs answered alike.

    Returns:
        Rows with the columns `RATERS`. A rater is left out who passed a smaller share of the
        attention checks than `least_checks`.
    """
    first = votes[~votes["attention"] & ~votes["repeat"]].assign(said=preferred)
    said = {(r.rater, r.item): r.said for r in first.itertuples()}
    rows = []
    for rater, own in votes.groupby("rater", sort=True):
        checks, again = own[own["attention"]], own[own["repeat"]]
        chosen = preferred(checks)
        passed = int(((chosen != DAMAGED) & (chosen != "")).sum())
        known = [
            (said[r.rater, r.item], r.said)
            for r in again.assign(said=preferred).itertuples()
            if (r.rater, r.item) in said
        ]
        alike = sum(before == after for before, after in known)
        out = len(checks) > 0 and passed < least_checks * len(checks)
        n_votes = len(own) - len(checks) - len(again)
        rows.append((str(rater), n_votes, len(checks), passed, len(known), alike, out))
    return pd.DataFrame(rows, columns=list(RATERS))


def left_share(votes: pd.DataFrame) -> tuple[float, float, float]:
    """The share of decided votes that went to the left image, with its 95% interval (Wilson).

    Sides are drawn, so raters without a habit take either as often.
    """
    left, right = (int((votes["choice"] == side).sum()) for side in ("left", "right"))
    if not left + right:
        return math.nan, math.nan, math.nan
    interval = binomtest(left, left + right).proportion_ci(method="wilson")
    return left / (left + right), float(interval.low), float(interval.high)
